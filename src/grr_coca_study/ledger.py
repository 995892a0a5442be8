"""Ledger of a study: the valid rows, and the best points of grids.

| file | content |
|---|---|
| `rows/` | the rows, one file each |
| `plan.yaml` | the plan of the study |
| `digests.json` | digests of recipes and data; rows with other digests do not count |

A report reads only these files, the images in `showcase/` and, for a demo, those in `exhibits/`.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import product
from pathlib import Path

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json
from grr_coca_study.plan import Arm, Plan, Settings, arms_tuned_together, point_title, search_seeds, stage_names
from grr_coca_study.rows import ROWS_FOLDER, LedgerRow, RowFolder, write_to_study

DIGESTS_FILE = "digests.json"

_MIN_LOSS = 1e-30
"""Replacement for a loss of exactly zero, which has no logarithm."""


# --- Digests of valid rows


@dataclass(frozen=True)
class Digests:
    """Valid digests of recipes and data. Rows with other digests do not count.

    Attributes:
        recipes: Digests of recipes by arm and stage, for the runs with the plan's seeds. A stage is missing until the
            choices of settings on which it depends have been made.
        data: Digests of data by stage, pretraining first.
        trials: Digests of recipes by arm and stage, for the points that are run with the tuning seeds, in grid order.
    """

    recipes: dict[str, dict[str, tuple[str, ...]]]
    data: dict[str, str]
    trials: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)

    def rejection_reason(self, plan: Plan, row: LedgerRow) -> str | None:
        """Return the reason why a row does not count, or None if it counts."""
        is_trial = plan.tuning is not None and row.seed in plan.tuning.seeds
        if not is_trial and row.seed not in plan.seeds:
            return "the plan has no such seed"
        valid = (self.trials if is_trial else self.recipes).get(row.arm, {}).get(row.stage, ())
        is_planned = row.stage in stage_names(plan) and any(row.arm == arm.name for arm in plan.arms)
        if not is_planned or not valid:
            return "the plan has no such run"
        if row.recipe_digest not in valid:
            known = valid[0] if len(valid) == 1 else f"one of the {len(valid)} of the grid"
            return f"another recipe ({row.recipe_digest}, not {known})"
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
        UserError: If the file is missing or corrupt.
    """
    path = folder / DIGESTS_FILE
    if not path.exists():
        raise UserError(f"{path}: file not found; run `grr-coca study run` to write it again")
    return from_dict(Digests, read_json(path), str(path))


def write_digests(folder: Path, digests: Digests) -> None:
    """Write `digests.json` atomically.

    Raises:
        UserError: If the folder cannot be written to.
    """
    write_to_study(folder / DIGESTS_FILE, f"{json.dumps(to_dict(digests), indent=2)}\n".encode())


# --- The best point of a grid


def best_point(costs: Iterable[Sequence[float]]) -> int | None:
    """Return the index of the point with the lowest sum of costs, or None if all points diverged.

    If several points have the lowest sum, the first of them is returned.

    Args:
        costs: For each arm and seed, the cost of each point; see `cost`.
    """
    sums = [sum(of_point) for of_point in zip(*costs, strict=True)]
    return None if math.isinf(min(sums)) else sums.index(min(sums))


def cost(row: LedgerRow) -> float:
    """Return the cost of a point: the log of the CoCa loss on `val`, so that all arms have equal weight.

    The cost is infinite if the run diverged.
    """
    loss = row.metrics.get("val", {}).get("coca_loss", math.inf)
    return math.log(max(loss, _MIN_LOSS))


# --- Reading


@dataclass(frozen=True)
class Ledger:
    """Valid rows of a study, and notes for the user.

    Attributes:
        rows: Rows of the plan's seeds, with each arm at its best point.
        tried: Rows of all points of all grids, with the seeds by which the best point is chosen.
        chosen: Best point of the grid, by arm and stage, computed from the seeds for which all points have rows.
        missing_runs: Arm, seed and stage of each planned run without a row.
        notes: One sentence for each row that does not count, and for other facts that readers need.
        diverged: Runs that would be in `rows` but have no metrics.
    """

    rows: tuple[LedgerRow, ...]
    tried: tuple[LedgerRow, ...] = ()
    chosen: Mapping[tuple[str, str], Settings] = field(default_factory=dict)
    _: KW_ONLY
    missing_runs: frozenset[tuple[str, int, str]] = frozenset()
    notes: tuple[str, ...] = ()
    diverged: tuple[LedgerRow, ...] = ()


def read_ledger(folder: Path, plan: Plan) -> Ledger:
    """Read the rows of a study's folder, and select the valid ones.

    Raises:
        UserError: If the folder has no rows, or a file cannot be read.
    """
    if not (folder / ROWS_FOLDER).is_dir():
        raise UserError(
            f"{folder}: not a study ({ROWS_FOLDER} is missing); pass the folder that `grr-coca study run` writes to"
        )
    files, digests = RowFolder(folder), read_digests(folder)
    read = files.new_rows()
    notes = list(files.notes.values())
    rows = _valid_rows(plan, read, digests, notes)
    grids = {(arm, t): found for arm, stages in digests.trials.items() for t, found in stages.items() if len(found) > 1}
    chosen = {
        (arm.name, stage): best
        for arm, stage in product(plan.arms, stage_names(plan))
        if (best := _best_row(plan, arm, stage, grids, rows)) is not None
    }
    missing_runs = frozenset(
        (arm.name, seed, stage)
        for arm, seed, stage in product(plan.arms, plan.seeds, stage_names(plan))
        if not (needed := digests.recipes.get(arm.name, {}).get(stage))
        or any((arm.name, stage, digest, seed) not in rows for digest in needed)
    )
    runs = [row for row in rows.values() if row.seed in plan.seeds]
    measured = [row for row in runs if row.kind == "run"]
    tried = [
        rows.get((arm, stage, digest, seed))
        for (arm, stage), points in grids.items()
        for digest, seed in product(points, search_seeds(plan))
    ]
    return Ledger(
        rows=tuple(measured),
        tried=tuple(row for row in tried if row is not None),
        chosen={key: row.settings for key, row in chosen.items()},
        missing_runs=missing_runs,
        notes=(*notes, *_pairing_notes(measured), *_commit_notes(measured)),
        diverged=tuple(row for row in runs if row.kind == "diverged"),
    )


_Rows = dict[tuple[str, str, str, int], LedgerRow]
"""Rows by arm, stage, recipe digest and seed."""


def _best_row(
    plan: Plan, arm: Arm, stage: str, grids: Mapping[tuple[str, str], Sequence[str]], rows: _Rows
) -> LedgerRow | None:
    """Return a row at the best point of an arm, or None if no point is chosen yet.

    The best point is computed from the seeds for which all points have rows.
    """
    costs: list[list[float]] = []
    last: list[LedgerRow] = []
    for each in arms_tuned_together(plan, arm):
        before = len(costs)
        for seed in search_seeds(plan):
            found = [rows.get((each.name, stage, digest, seed)) for digest in grids.get((each.name, stage), ())]
            tried = [row for row in found if row is not None]
            if tried and len(tried) == len(found):
                last = tried
                costs.append([cost(row) for row in tried])
        if len(costs) == before:
            return None
    best = best_point(costs)
    return None if best is None else last[best]


def _valid_rows(plan: Plan, rows: Iterable[LedgerRow], digests: Digests, notes: list[str]) -> _Rows:
    """Return the valid rows, in plan order, and add a note for each row that does not count.

    If a run has two rows, the row with more metrics counts. One of the rows may be a copy from another study.
    """
    found: _Rows = {}
    for row in rows:
        point = f", {point_title(row.settings)}" if row.settings else ""
        name = f"{row.arm}{point}, seed {row.seed}, {row.stage}"
        rejection_reason = digests.rejection_reason(plan, row)
        if rejection_reason is not None:
            notes.append(f"{name}: not counted: {rejection_reason}")
            continue
        key = (row.arm, row.stage, row.recipe_digest, row.seed)
        if key in found:
            notes.append(f"{name}: has two rows; the one with more metrics counts")
        if key not in found or _num_metrics(row) > _num_metrics(found[key]):
            found[key] = row
    arms, stages = [arm.name for arm in plan.arms], stage_names(plan)
    return dict(sorted(found.items(), key=lambda item: (arms.index(item[0][0]), item[0][3], stages.index(item[0][1]))))


def _num_metrics(row: LedgerRow) -> int:
    return sum(len(metrics) for metrics in row.metrics.values())


def _pairing_notes(runs: Iterable[LedgerRow]) -> Iterator[str]:
    """Yield a sentence for each run that is not paired with the first run of its seed and stage.

    Runs are paired if parameters with equal names and shapes have the same initial values, and the training pairs have
    the same order. The orders of runs with different lengths are not compared.
    """
    firsts: dict[tuple[int, str], LedgerRow] = {}
    for row in runs:
        first = firsts.setdefault((row.seed, row.stage), row)
        shared = row.initial_weights.keys() & first.initial_weights.keys()
        differing = sorted(name for name in shared if row.initial_weights[name] != first.initial_weights[name])
        name = f"{row.arm}, seed {row.seed}, {row.stage}"
        if differing:
            count = f"{len(differing)} of {len(shared)} parameters"
            yield f"{name}: {count} have other initial values than in {first.arm}, such as {differing[0]}"
        if row.data_order != first.data_order and row.steps == first.steps:
            yield f"{name}: was not trained on the same pairs in the same order as {first.arm}"


def _commit_notes(runs: Sequence[LedgerRow]) -> Iterator[str]:
    commits = Counter(row.commit for row in runs)
    if len(commits) > 1:
        shares = ", ".join(f"{count} of {commit}" for commit, count in commits.most_common())
        yield f"rows come from {len(commits)} commits: {shares}"
