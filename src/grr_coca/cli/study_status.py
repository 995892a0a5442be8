"""What a study has and what it lacks."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from grr_coca.extras import require_extra
from grr_coca.study.ledger import LedgerRow, read_ledger
from grr_coca.study.plan import lacking_scores, plan_of_folder, stage_names


def print_status(folder: Path) -> int:
    """Print it."""
    if find_spec("yaml") is None:  # of the extra it needs this alone
        require_extra("train", "a study's status")
    plan = plan_of_folder(folder)
    ledger = read_ledger(folder, seeds=plan.seeds)
    lacking = {(row.arm, row.seed, row.stage): lacking_scores(plan, row) for row in ledger.rows}
    rows = [row for row in ledger.rows if not lacking[row.arm, row.seed, row.stage]]
    stages = stage_names(plan)
    width = max(len(arm.name) for arm in plan.arms)
    print(
        f"{'arm':<{width}}  {'  '.join(stages)}   rows of {len(plan.seeds)} seed{'' if len(plan.seeds) == 1 else 's'}"
    )
    for arm in plan.arms:
        counts = [str(_count(rows, arm.name, stage)).rjust(len(stage)) for stage in stages]
        print(f"{arm.name:<{width}}  {'  '.join(counts)}")
    for row in ledger.choices:
        print(
            f"chosen for {row.arm}, {row.stage}: {', '.join(f'{key} {value}' for key, value in row.settings.items())}"
        )
    for (name, seed, stage), scores in lacking.items():
        if scores:
            print(f"{name}, seed {seed}, {stage}: lacks {', '.join(scores)}; `grr-coca study run` does it again")
    for row in ledger.diverged:
        print(f"{row.arm}, seed {row.seed}, {row.stage}: diverged, which is its result")
    for note in ledger.notes:
        print(note)
    return 0


def _count(rows: Sequence[LedgerRow], arm: str, stage: str) -> int:
    return sum(row.arm == arm and row.stage == stage for row in rows)
