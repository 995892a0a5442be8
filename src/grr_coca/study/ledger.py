"""The ledger of a study: one row for each finished stage, in files to which rows are only appended.

| file | content |
|---|---|
| `runs.jsonl` | the rows, one JSON object a line; `runs-I-of-N.jsonl`: the rows of a shard |
| `plan.yaml` | the plan of the study |
| `digests.json` | digests of recipes and data; rows with other digests do not count |

A report reads these files and the images in `showcase/`, and nothing else.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import BINARY, read_at, read_json, read_whole, write_whole
from grr_coca.common.locks import LockHeldError, ProcessLock, is_held

LEDGER_FILE = "runs.jsonl"
PLAN_FILE = "plan.yaml"
DIGESTS_FILE = "digests.json"
SHARD_FILE = re.compile(r"runs-(\d+)-of-(\d+)\.jsonl")


# --- Rows

Kind = Literal["run", "trial", "choice", "diverged"]


@dataclass(frozen=True)
class CurvePoint:
    """Losses of a run after `step` steps: `train`, the means over the steps since the previous point, and `val`."""

    step: int
    train: dict[str, float]
    val: dict[str, float]


@dataclass(frozen=True)
class CaptionedExample:
    """The key of an image of the showcase, its reference captions, and the model's caption."""

    image: str
    references: tuple[str, ...]
    caption: str


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """A finished stage: what was run, where, and all numbers that a report needs.

    - `kind`: a `run` counts for the study; a `trial` is one point of an arm's tuning grid, measured on `val` alone; a
      `choice` is the best of these trials; a `diverged` run has no metrics, since its loss became infinite or NaN
    - `stage`: named after the file of its recipe, such as `health`
    - `recipe_digest`, `data_digest`: of all that the run depends on; rows with other digests than the plan's do not
      count. `start_data_digest`: of a fine-tuning, the digest of its pretraining data; None in rows of old versions
    - `commit`: of the code, with a `+` if files were changed since
    - `precision`: of forward and backward passes, and of Muon's products if it differs
    - `settings`: the tuned keys of the recipe with their values
    - `seconds`: of training and evaluation, over all processes that worked on the run
    - `flops_per_pair`: of one forward pass with a caption of maximum length
    - `training_flops`: of all steps of the run, see `run_flops`; None in rows of old versions
    - `initial_weights`: of a run that starts from new weights, a hash of each parameter before the first step, by name
      and shape, such as `image_encoder.patch_embed.weight [128, 768]`. `data_order`: a hash of the order of the
      training pairs. Empty and None in rows of old versions
    - `curve`: a point for each validation
    - `metrics`: by split (`val` and the test splits): `contrastive_loss`, `contrastive_loss_refitted` (with the
      temperature that is best on `val`), `captioning_loss`, `perplexity`, `coca_loss`, `R@1`, `R@5` and `R@10` from
      text to image, `image_to_text/R@1` …, `chance/R@1` …, `num_pairs`; and the caption scores `CIDEr`, `CIDEr-D`,
      `BLEU-4`, `ROUGE-L`. NaN and infinite numbers are left out
    - `values`: by test split, the values from which intervals over images are computed: `contrastive_batches` and
      `contrastive_batches_refitted`, the loss of each batch; `nll` and `tokens` of each caption; `rank` of each text
      query, the number of wrong images before the first right one; `image`, the index of the image of each caption, if
      an image has several; `cider_d` of each image
    - `captions`: of the same few images for every arm and seed, if the stage has the showcase
    """

    kind: Kind = "run"
    arm: str
    seed: int
    stage: str
    recipe_digest: str
    data_digest: str
    start_data_digest: str | None = None
    commit: str
    machine: str
    precision: str
    settings: dict[str, object] = field(default_factory=dict)
    steps: int
    seconds: float
    parameters: int
    image_encoder_parameters: int
    flops_per_pair: int
    training_flops: int | None = None
    initial_weights: dict[str, str] = field(default_factory=dict)
    data_order: str | None = None
    curve: tuple[CurvePoint, ...] = ()
    metrics: dict[str, dict[str, float]]
    values: dict[str, dict[str, list]] = field(default_factory=dict)
    captions: tuple[CaptionedExample, ...] = ()


def finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers that are neither NaN nor infinite."""
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


# --- Digests: which rows count


@dataclass(frozen=True)
class Digests:
    """The valid digests of recipes and data. Rows with other digests do not count.

    - `recipes`: by arm and stage; arms whose tuning has not ended are missing
    - `data`: by stage, pretraining first
    - `trials`: by arm and stage, the recipes of all trials. A stage is missing until the model is chosen from which its
      trials start. None in files of old versions
    - `tuning_seed`: the seed of all trials
    """

    recipes: dict[str, dict[str, str]]
    data: dict[str, str]
    trials: dict[str, dict[str, tuple[str, ...]]] | None = None
    tuning_seed: int | None = None

    def fault(self, row: LedgerRow) -> str | None:
        """The reason why a run does not count; None if it counts."""
        recipe = self.recipes.get(row.arm, {}).get(row.stage)
        if recipe is None:
            return "the plan has no such run"
        if row.recipe_digest != recipe:
            return f"another recipe ({row.recipe_digest}, not {recipe})"
        return self.data_fault(row)

    def trial_fault(self, row: LedgerRow) -> str | None:
        """The reason why a trial or a choice does not count; None if it counts, or if that is not known yet."""
        if row.stage not in self.data:
            return "the plan has no such stage"
        fault = self.data_fault(row)
        if fault is not None or self.trials is None:
            return fault
        if row.arm not in self.trials:
            return "the plan has no such arm"
        if row.seed != self.tuning_seed:
            return f"another seed than that of tuning ({row.seed}, not {self.tuning_seed})"
        known = self.trials[row.arm].get(row.stage)
        if known is not None and row.recipe_digest not in known:
            return f"another recipe ({row.recipe_digest}, none of the {len(known)} that the plan tries)"
        return None

    def data_fault(self, row: LedgerRow) -> str | None:
        """The reason why a row does not count because of its data; None if its data are those of the plan."""
        if row.stage not in self.data:
            return f"{DIGESTS_FILE} has no digest of its data; `grr-coca study run` writes it again"
        if row.data_digest != self.data[row.stage]:
            return f"other data ({row.data_digest}, not {self.data[row.stage]})"
        pretraining = next(iter(self.data.values()))
        if row.start_data_digest not in (None, pretraining):
            return f"other data of pretraining ({row.start_data_digest}, not {pretraining})"
        return None


def read_digests(folder: Path) -> Digests:
    """Read `digests.json` in the folder of a study.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / DIGESTS_FILE
    if not path.exists():
        raise UserError(f"{path}: is missing; `grr-coca study run` writes it again")
    return from_dict(Digests, read_json(path), str(path))


def write_digests(folder: Path, digests: Digests) -> None:
    """Write `digests.json` atomically.

    Raises:
        UserError: the folder cannot be written to.
    """
    write_beside_ledger(folder / DIGESTS_FILE, json.dumps(to_dict(digests), indent=2) + "\n")


# --- Reading


@dataclass(frozen=True)
class Ledger:
    """The valid rows of a study, by kind, and notes for the user.

    - `choices`: one for each arm and stage, that of the runs; without runs, the newest
    - `notes`: a sentence for each row that does not count, and for each fact about the others that a reader should know
    """

    rows: tuple[LedgerRow, ...]
    trials: tuple[LedgerRow, ...]
    choices: tuple[LedgerRow, ...]
    notes: tuple[str, ...]
    diverged: tuple[LedgerRow, ...] = ()


def read_ledger(folder: Path, digests: Digests | None = None, seeds: Collection[int] | None = None) -> Ledger:
    """Read all ledgers of a study's folder, and find the rows that count.

    Args:
        folder: folder of the study.
        digests: the digests that rows must have; None: those of the folder's own file.
        seeds: the seeds of the plan, which runs must have; None: any.

    Raises:
        UserError: the folder has no ledger, or a file cannot be read.
    """
    notes: list[str] = []
    rows = read_rows(folder, notes)
    if not rows and not ledger_files(folder):
        raise UserError(
            f"{folder}: is not a study: {LEDGER_FILE} is missing; give the folder that `grr-coca study run` writes to"
        )
    digests = digests or read_digests(folder)
    runs = _counted([row for row in rows if row.kind == "run"], digests, seeds, notes)
    measured = {(row.arm, row.seed, row.stage) for row in runs}
    diverged = _counted([row for row in rows if row.kind == "diverged"], digests, seeds, notes)
    trials = _counted_trials([row for row in rows if row.kind in ("trial", "choice")], digests, notes)
    notes += _unpaired(runs)
    commits = Counter(row.commit for row in runs)
    if len(commits) > 1:
        shares = ", ".join(f"{count} of {commit}" for commit, count in commits.most_common())
        notes.append(f"rows come from {len(commits)} commits: {shares}")
    return Ledger(
        rows=tuple(runs),
        trials=tuple(row for row in trials if row.kind == "trial"),
        choices=_counted_choices([row for row in trials if row.kind == "choice"], runs),
        notes=tuple(notes),
        diverged=tuple(row for row in diverged if (row.arm, row.seed, row.stage) not in measured),
    )


def read_rows(folder: Path, notes: list[str]) -> list[LedgerRow]:
    """All rows of a folder's ledgers, whatever their digests.

    Args:
        folder: folder of the study.
        notes: gets a sentence for each line that is invalid.
    """
    return [row for path in ledger_files(folder) for row in _rows_of_file(path, notes)]


def ledger_files(folder: Path) -> list[Path]:
    """The ledgers in a folder: those of the shards, then that of the whole study, which is written after them."""
    shards = sorted(path for path in folder.glob("runs-*.jsonl") if SHARD_FILE.fullmatch(path.name))
    whole = folder / LEDGER_FILE
    return [*shards, whole] if whole.exists() else shards


def _rows_of_file(path: Path, notes: list[str]) -> Iterator[LedgerRow]:
    content = read_whole(path)
    end = content.rfind(b"\n") + 1
    if _is_object(content[end:]):
        end = len(content)
    if end < len(content):
        notes.append(_torn_note(path))
    for number, line in enumerate(content[:end].splitlines(), start=1):
        try:
            yield from_dict(LedgerRow, json.loads(line), f"line {number}")
        except ValueError as error:  # not JSON, or no row
            notes.append(f"{path.name}: line {number} is invalid and does not count ({error})")


def _counted(
    rows: Iterable[LedgerRow], digests: Digests, seeds: Collection[int] | None, notes: list[str]
) -> list[LedgerRow]:
    """The runs that count. Of two rows of one run, the newer counts, unless it has fewer metrics: a row may have been
    copied from another study."""
    found: dict[tuple[str, int, str], LedgerRow] = {}
    for row in rows:
        name = f"{row.arm}, seed {row.seed}, {row.stage}"
        fault = digests.fault(row) if seeds is None or row.seed in seeds else "the plan has no such seed"
        if fault is not None:
            notes.append(f"{name}: not counted: {fault}")
            continue
        key = (row.arm, row.seed, row.stage)
        is_poorer = key in found and _num_metrics(row) < _num_metrics(found[key])
        if key in found:
            notes.append(
                f"{name}: has two rows; the one {'with more metrics' if is_poorer else 'written later'} counts"
            )
        if not is_poorer:
            found[key] = row
    return list(found.values())


def _unpaired(runs: Iterable[LedgerRow]) -> Iterator[str]:
    """A sentence for each run that is not paired with the first run of its seed and stage.

    Runs are paired if parameters of equal name and shape have the same initial values, and the training pairs the same
    order. The orders of runs of different length are not compared, nor are rows without hashes, which old versions
    wrote; a last sentence counts those that stand beside rows with hashes.
    """
    firsts: dict[tuple[int, str], LedgerRow] = {}
    unknown: list[tuple[int, str]] = []
    for row in runs:
        if row.data_order is None:
            unknown.append((row.seed, row.stage))
            continue
        first = firsts.setdefault((row.seed, row.stage), row)
        shared = row.initial_weights.keys() & first.initial_weights.keys()
        differing = sorted(name for name in shared if row.initial_weights[name] != first.initial_weights[name])
        name = f"{row.arm}, seed {row.seed}, {row.stage}"
        if differing:
            count = f"{len(differing)} of {len(shared)} parameters"
            yield f"{name}: {count} have other initial values than in {first.arm}, such as {differing[0]}"
        if row.data_order != first.data_order and row.steps == first.steps:
            yield f"{name}: was not trained on the same pairs in the same order as {first.arm}"
    if num_unknown := sum(run in firsts for run in unknown):
        yield (
            f"{num_unknown} row{'' if num_unknown == 1 else 's'} of an old version without hashes: whether initial "
            "weights and data order are those of other rows of the seed is not checked"
        )


def _num_metrics(row: LedgerRow) -> int:
    return sum(len(metrics) for metrics in row.metrics.values())


def _counted_trials(rows: Iterable[LedgerRow], digests: Digests, notes: list[str]) -> list[LedgerRow]:
    """The valid trials and choices. Adds a note on each invalid trial, but not on its choice as well."""
    counted = []
    for row in rows:
        fault = digests.trial_fault(row)
        if fault is None:
            counted.append(row)
        elif row.kind == "trial":
            settings = ", ".join(f"{key} {value}" for key, value in row.settings.items())
            notes.append(f"{row.arm}, {row.stage}, trial of {settings}: not counted: {fault}")
    return counted


def _counted_choices(choices: Iterable[LedgerRow], runs: Iterable[LedgerRow]) -> tuple[LedgerRow, ...]:
    """One choice for each arm and stage: the one that the runs used, or else the last one."""
    used = {(run.arm, run.stage): run.settings for run in runs}
    found: dict[tuple[str, str], LedgerRow] = {}
    for row in choices:
        key = (row.arm, row.stage)
        if key not in found or row.settings == used.get(key) or found[key].settings != used.get(key):
            found[key] = row
    return tuple(found.values())


# --- Writing


class LedgerWriter:
    """Appends rows to one ledger, and locks it against other processes. A context manager.

    A row is on disk when `append` returns. A torn last line, left by a killed process, is removed; `notes` says so.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._file = -1
        self._lock: ProcessLock | None = None

    def __enter__(self) -> "LedgerWriter":
        """Open and lock the ledger.

        Raises:
            UserError: another process holds it, or it cannot be written to.
        """
        try:
            self._lock = ProcessLock(lock_file(self.path), removes=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | BINARY, 0o644)
            self._end_last_line()
        except LockHeldError as error:
            raise UserError(
                f"{self.path}: another process is running this study; wait until it has ended, or give every process "
                "its own part with --shard I/N"
            ) from error
        except OSError as error:
            self._close()
            raise UserError(f"{self.path}: cannot be written to ({error.strerror or error})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        if self._lock is not None:
            self._lock.release()

    def _end_last_line(self) -> None:
        """Complete the last line: add a newline that an editor or a copy has dropped, or remove a torn row."""
        content = read_at(self._file, os.fstat(self._file).st_size, 0)
        end = content.rfind(b"\n") + 1
        if _is_object(content[end:]):
            os.write(self._file, b"\n")
        elif end < len(content):
            os.ftruncate(self._file, end)
            self.notes.append(_torn_note(self.path))

    def append(self, row: LedgerRow) -> None:
        """Write a row to the disk.

        Raises:
            UserError: the disk is full or cannot be written to; no part of the row is left in the file.
        """
        content = json.dumps(to_dict(row), ensure_ascii=False, separators=(",", ":"))
        # A file name that is not UTF-8 contains lone surrogates, which are written as JSON escapes.
        line = content.encode("utf-8", "backslashreplace") + b"\n"
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError("the disk is full")
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise UserError(
                f"{self.path}: the row of {row.arm}, seed {row.seed}, {row.stage} could not be written "
                f"({error.strerror or error}); free some space: the run is saved, and the same command continues it"
            ) from error


def is_locked(path: Path) -> bool:
    """True if a process has a ledger open for writing."""
    return is_held(lock_file(path))


def lock_file(path: Path) -> Path:
    """The file of a ledger's lock. A process that was killed leaves it, which does no harm."""
    return path.with_name(f".{path.name}.lock")


def write_beside_ledger(path: Path, text: str) -> None:
    """Write a file of a study's folder atomically.

    Raises:
        UserError: the folder cannot be written to.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


# --- The last line, which a killed process may leave torn


def _is_object(line: bytes) -> bool:
    """True if a line is a complete JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _torn_note(path: Path) -> str:
    """The note on a torn last line."""
    return f"{path.name}: the last line is torn, as after a kill; it is ignored, and its run is repeated"
