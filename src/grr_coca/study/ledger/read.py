"""A study's ledgers, read: which rows count, and what is said of the others."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from grr_coca.errors import UserError
from grr_coca.files import read_whole
from grr_coca.structure import from_dict
from grr_coca.study.ledger.digests import Digests, read_digests
from grr_coca.study.ledger.files import LEDGER_FILE, ledger_files
from grr_coca.study.ledger.lines import is_object, told_torn
from grr_coca.study.ledger.row import LedgerRow


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
