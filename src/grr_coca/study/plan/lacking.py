"""What a row of the right run may lack: one that was copied from another study has the scores that that one needed."""

from grr_coca.study.ledger import LedgerRow
from grr_coca.study.plan.plan import PHASES, Plan, split_endpoint, stage_names
from grr_coca.train.recipe import CAPTION_SCORES


def lacking_scores(plan: Plan, row: LedgerRow) -> list[str]:
    """Scores of captions that endpoints need of a run, and that were not measured. Other metrics every run has, but for
    numbers that are not finite."""
    phase = PHASES[0] if row.stage == stage_names(plan)[0] else PHASES[1]
    needed = [metric for where, metric in map(split_endpoint, plan.endpoints.all) if where == phase]
    measured = row.metrics.get(plan.endpoints.split, {})
    lacking = [metric for metric in needed if metric in CAPTION_SCORES and metric not in measured]
    return lacking if row.kind == "run" else []
