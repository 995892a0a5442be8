"""The ledger of a study: one row for each stage that has ended, in files that are only ever appended to.

| file | holds |
|---|---|
| `runs.jsonl` | the rows, a JSON object a line; `runs-I-of-N.jsonl` those of a shard |
| `plan.yaml` | the plan of the study |
| `digests.json` | what a row must be made of to count: recipes by arm and stage, of runs and trials; data by stage |

A report reads these three, the pictures in `showcase/`, and nothing else.

The rows of a ledger.

The lines of a ledger as they lie on the disk: the last one may be torn.

The files of a study's folder.

What the rows of a study must be made of to count.

A study's ledgers, read: which rows count, and what is said of the others.

A ledger that is written: row after row, each on the disk before the next.
"""

import fcntl
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

from grr_coca.checkpoint_files import read_json
from grr_coca.errors import UserError
from grr_coca.files import read_whole, write_whole
from grr_coca.structure import from_dict, to_dict

Kind = Literal["run", "trial", "choice", "diverged"]


@dataclass(frozen=True)
class CurvePoint:
    """The losses of a run after `step` steps: `train`, means over the steps since the point before, and `val`."""

    step: int
    train: dict[str, float]
    val: dict[str, float]


@dataclass(frozen=True)
class CaptionedExample:
    """An image of the showcase by its key, what people say of it, and what the model says."""

    image: str
    references: tuple[str, ...]
    caption: str


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """A stage that has ended: what was run, where, and every number that a report needs of it.

    `kind`: a `run` counts for the study; a `trial` is one point of an arm's tuning grid, measured on `val` alone; a
    `choice` is the best of these trials; `diverged` is a run whose loss stopped being a number: it has no metrics.
    `seed`, `stage`: the stage is named by its recipe's file, such as `health`.
    `recipe_digest`, `data_digest`: of all that the run depends on; rows with other digests than the plan's are not
    counted. `start_data_digest`: of a fine-tuning, that of the data of the pretraining that it goes on from; None in
    rows of versions that did not note it.
    `commit`: of the code, with a `+` behind it if files had been changed since.
    `precision`: of forward and backward passes, and of Muon's products if that is another one.
    `settings`: the tuned keys of the recipe with their values.
    `seconds`: of training and evaluation, over all lives of the run.
    `flops_per_pair`: of one forward pass, with captions as long as they can be.
    `training_flops`: of all steps of the run, see `run_flops`; None in rows of versions that did not count them.
    `initial_weights`: of a run that begins with new weights, a hash of each parameter before the first step, by name
    and shape, such as `image_encoder.patch_embed.weight [128, 768]`. `data_order`: a hash of the order in which the
    training pairs are visited (see `running.beginning`). Empty and None in rows of versions that did not note them.
    `curve`: a point for each validation.
    `metrics`: by split, `val` and the test splits: `contrastive_loss`, `contrastive_loss_refitted` (with the
    temperature that is best on `val`), `captioning_loss`, `perplexity`, `coca_loss`, `R@1`, `R@5` and `R@10` from text
    to image, `image_to_text/R@1` …, `chance/R@1` …, `num_pairs`; and of captions `CIDEr`, `CIDEr-D`, `BLEU-4`,
    `ROUGE-L`. A number that is not finite is left out.
    `values`: by test split, what intervals over images are made of: `contrastive_batches` and
    `contrastive_batches_refitted`, the loss of each batch; `nll` and `tokens`, of each caption; `rank`, of each text
    query: wrong images before the first right one; `image`, the number of the image of each caption, where some image
    has several; `cider_d`, of each image.
    `captions`: the same few images for every arm and seed, where the stage has the showcase.
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
    """The numbers that are any."""
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def is_object(line: bytes) -> bool:
    """Whether a line is a whole JSON object, which no beginning of one is."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def told_torn(path: Path) -> str:
    """What is said of a torn last line."""
    return f"{path.name}: the last line is torn, as a kill leaves it; it is dropped, and its run done again"


LEDGER_FILE = "runs.jsonl"
PLAN_FILE = "plan.yaml"
DIGESTS_FILE = "digests.json"
SHARD_FILE = re.compile(r"runs-(\d+)-of-(\d+)\.jsonl")


def ledger_files(folder: Path) -> list[Path]:
    """The ledgers that are in a folder, the whole study's last: it is continued when the shards are done."""
    shards = sorted(path for path in folder.glob("runs-*.jsonl") if SHARD_FILE.fullmatch(path.name))
    whole = folder / LEDGER_FILE
    return [*shards, whole] if whole.exists() else shards


def write_beside_ledger(path: Path, text: str) -> None:
    """Write a file of a study's folder, whole or not at all.

    Raises:
        UserError: the folder cannot be written to.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


@dataclass(frozen=True)
class Digests:
    """What rows must be made of: the digest of each arm's recipe by stage, and of each stage's data, pretraining first.
    An arm whose tuning has not ended is not among the recipes.

    `trials`: by arm and stage, the recipes of all trials; a stage is missing as long as the model that they start from
    has not been chosen. None: written by a version that did not know them. `tuning_seed`: that of all trials.
    """

    recipes: dict[str, dict[str, str]]
    data: dict[str, str]
    trials: dict[str, dict[str, tuple[str, ...]]] | None = None
    tuning_seed: int | None = None

    def fault(self, row: LedgerRow) -> str | None:
        """Why a run does not count; None if it does."""
        recipe = self.recipes.get(row.arm, {}).get(row.stage)
        if recipe is None:
            return "the plan has no such run"
        if row.recipe_digest != recipe:
            return f"another recipe ({row.recipe_digest}, not {recipe})"
        return self.data_fault(row)

    def trial_fault(self, row: LedgerRow) -> str | None:
        """Why a trial does not count, or the choice of one; None if it does, or if nobody can tell yet."""
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
        """Whether a row of a stage that is there is of other data; None if it is of these."""
        if row.stage not in self.data:
            return f"{DIGESTS_FILE} says nothing of its data; `grr-coca study run` writes it anew"
        if row.data_digest != self.data[row.stage]:
            return f"other data ({row.data_digest}, not {self.data[row.stage]})"
        pretraining = next(iter(self.data.values()))
        if row.start_data_digest not in (None, pretraining):
            return f"other data of pretraining ({row.start_data_digest}, not {pretraining})"
        return None


def read_digests(folder: Path) -> Digests:
    """What the rows of a study must be made of.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / DIGESTS_FILE
    if not path.exists():
        raise UserError(f"{path}: is missing; `grr-coca study run` writes it anew")
    return from_dict(Digests, read_json(path), str(path))


def write_digests(folder: Path, digests: Digests) -> None:
    """Write them, whole or not at all.

    Raises:
        UserError: the folder cannot be written to.
    """
    write_beside_ledger(folder / DIGESTS_FILE, json.dumps(to_dict(digests), indent=2) + "\n")


@dataclass(frozen=True)
class Ledger:
    """The rows of a study that count, by what they are. Of the choices for an arm and a stage, one is there: that which
    runs were made with, or else the newest.
    `diverged`: runs without metrics. `notes` has one sentence on each thing that was not counted, and on what a reader
    should know of those that were."""

    rows: tuple[LedgerRow, ...]
    trials: tuple[LedgerRow, ...]
    choices: tuple[LedgerRow, ...]
    notes: tuple[str, ...]
    diverged: tuple[LedgerRow, ...] = ()


def read_ledger(folder: Path, digests: Digests | None = None, seeds: Collection[int] | None = None) -> Ledger:
    """Read all ledgers of a study's folder.

    Args:
        folder: of the study.
        digests: what rows must be made of; None: what the folder's own file says.
        seeds: those of the plan, which runs must have; None: any.

    Raises:
        UserError: the folder has no ledger, or a file cannot be read.
    """
    notes: list[str] = []
    rows = read_rows(folder, notes)
    if not rows and not ledger_files(folder):
        raise UserError(f"{folder}: holds no study: {LEDGER_FILE} is missing; `grr-coca study run` writes it")
    digests = digests or read_digests(folder)
    runs = _counted([row for row in rows if row.kind == "run"], digests, seeds, notes)
    measured = {(row.arm, row.seed, row.stage) for row in runs}
    diverged = _counted([row for row in rows if row.kind == "diverged"], digests, seeds, notes)
    trials = _counted_trials([row for row in rows if row.kind in ("trial", "choice")], digests, notes)
    notes += _unpaired(runs)
    commits = Counter(row.commit for row in runs)
    if len(commits) > 1:
        told = ", ".join(f"{count} of {commit}" for commit, count in commits.most_common())
        notes.append(f"rows come from {len(commits)} commits: {told}")
    return Ledger(
        rows=tuple(runs),
        trials=tuple(row for row in trials if row.kind == "trial"),
        choices=_counted_choices([row for row in trials if row.kind == "choice"], runs),
        notes=tuple(notes),
        diverged=tuple(row for row in diverged if (row.arm, row.seed, row.stage) not in measured),
    )


def read_rows(folder: Path, notes: list[str]) -> list[LedgerRow]:
    """All rows of a folder's ledgers, whatever they are made of.

    Args:
        folder: of the study.
        notes: what could not be read is told here.
    """
    return [row for path in ledger_files(folder) for row in _rows_of_file(path, notes)]


def _rows_of_file(path: Path, notes: list[str]) -> Iterator[LedgerRow]:
    content = read_whole(path)
    end = content.rfind(b"\n") + 1
    if is_object(content[end:]):
        end = len(content)
    if end < len(content):
        notes.append(told_torn(path))
    for number, line in enumerate(content[:end].splitlines(), start=1):
        try:
            yield from_dict(LedgerRow, json.loads(line), f"line {number}")
        except ValueError as error:  # not JSON, or no row
            notes.append(f"{path.name}: line {number} is not a row and not counted ({error})")


def _counted(
    rows: Iterable[LedgerRow], digests: Digests, seeds: Collection[int] | None, notes: list[str]
) -> list[LedgerRow]:
    """The runs that count: of a run that is there twice, the newer row, if it has no fewer metrics than the other. One
    that was copied from another study may have fewer."""
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
            notes.append(f"{name}: is there twice; the {'fuller' if is_poorer else 'newer'} row counts")
        if not is_poorer:
            found[key] = row
    return list(found.values())


def _unpaired(runs: Iterable[LedgerRow]) -> Iterator[str]:
    """Runs of the same seed and stage that do not begin alike: with other values in a parameter of equal name and
    shape, or with other pairs. Rows of versions that noted no hashes, and runs of other lengths, are not compared."""
    firsts: dict[tuple[int, str], LedgerRow] = {}
    for row in runs:
        if row.data_order is None:
            continue
        first = firsts.setdefault((row.seed, row.stage), row)
        shared = row.initial_weights.keys() & first.initial_weights.keys()
        differing = sorted(name for name in shared if row.initial_weights[name] != first.initial_weights[name])
        name = f"{row.arm}, seed {row.seed}, {row.stage}"
        if differing:
            count = f"{len(differing)} of {len(shared)} parameters"
            yield f"{name}: {count} began otherwise than those of {first.arm}, the first: {differing[0]}"
        if row.data_order != first.data_order and row.steps == first.steps:
            yield f"{name}: was not trained on the same pairs in the same order as {first.arm}"


def _num_metrics(row: LedgerRow) -> int:
    return sum(len(metrics) for metrics in row.metrics.values())


def _counted_trials(rows: Iterable[LedgerRow], digests: Digests, notes: list[str]) -> list[LedgerRow]:
    """The trials and choices of this plan; the others are named, a choice not once more beside its trial."""
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
    """One for each arm and stage. Rows of several ledgers have no order: that of the runs comes before the newest."""
    used = {(run.arm, run.stage): run.settings for run in runs}
    found: dict[tuple[str, str], LedgerRow] = {}
    for row in choices:
        key = (row.arm, row.stage)
        if key not in found or row.settings == used.get(key) or found[key].settings != used.get(key):
            found[key] = row
    return tuple(found.values())


class LedgerWriter:
    """Appends rows to one ledger, which no other process writes to meanwhile. A context.

    A row is on disk when `append` returns. What a killed process left of a row is cut off, and told in `notes`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._file = -1

    def __enter__(self) -> "LedgerWriter":
        """Take the ledger.

        Raises:
            UserError: another process has it, or it cannot be written to.
        """
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._end_last_line()
        except BlockingIOError as error:
            os.close(self._file)
            raise UserError(
                f"{self.path}: another process is running this study; wait until it has ended, or give every process "
                "a part of its own with --shard I/N"
            ) from error
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written to ({error.strerror or error})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._file)

    def _end_last_line(self) -> None:
        """A row whose newline alone is lacking gets it, as an editor or a copy may have left it; a torn one goes."""
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        end = content.rfind(b"\n") + 1
        if is_object(content[end:]):
            os.write(self._file, b"\n")
        elif end < len(content):
            os.ftruncate(self._file, end)
            self.notes.append(told_torn(self.path))

    def append(self, row: LedgerRow) -> None:
        """Write a row to the disk.

        Raises:
            UserError: the disk is full or cannot be written to; no part of the row stays behind.
        """
        content = json.dumps(to_dict(row), ensure_ascii=False, separators=(",", ":"))
        # An image's name that is not UTF-8 holds lone surrogates, which become JSON's escapes.
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
                f"({error.strerror or error}); make room there: its run is saved, and the same command goes on with it"
            ) from error


def is_locked(path: Path) -> bool:
    """Whether a process is writing to a ledger."""
    with path.open("rb") as file:
        try:  # a shared lock: another one's look does not disturb it, and NFS gives it on a file opened for reading
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


__all__ = [
    "DIGESTS_FILE",
    "LEDGER_FILE",
    "PLAN_FILE",
    "SHARD_FILE",
    "CaptionedExample",
    "CurvePoint",
    "Digests",
    "Kind",
    "Ledger",
    "LedgerRow",
    "LedgerWriter",
    "finite",
    "is_locked",
    "ledger_files",
    "read_digests",
    "read_ledger",
    "read_rows",
    "write_beside_ledger",
    "write_digests",
]
