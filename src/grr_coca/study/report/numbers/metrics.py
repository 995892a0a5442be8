"""Endpoints of a study: what they are called, which way is better, and their values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grr_coca.study.ledger import LedgerRow
from grr_coca.study.plan.plan import LOSS_METRICS, Plan, split_endpoint, stage_names

TITLES = {
    "contrastive_loss": "contrastive loss",
    "contrastive_loss_refitted": "contrastive loss, refitted temperature",
    "captioning_loss": "captioning loss",
    "perplexity": "perplexity",
    "coca_loss": "CoCa loss",
    **{f"R@{k}": f"R@{k}, text to image" for k in (1, 5, 10)},
    **{f"image_to_text/R@{k}": f"R@{k}, image to text" for k in (1, 5, 10)},
}
"""Metrics that people call otherwise than rows of a ledger do."""

PHASE_TITLES = {"pretraining": "after pretraining", "finetuning": "after fine-tuning"}

Rows = Mapping[tuple[str, int, str], LedgerRow]
"""Rows by arm, seed and stage."""


@dataclass(frozen=True)
class Endpoint:
    """A metric after a phase of training, as a plan names it: `pretraining/coca_loss`."""

    name: str

    @property
    def phase(self) -> str:
        """`pretraining` or `finetuning`."""
        return split_endpoint(self.name)[0]

    @property
    def metric(self) -> str:
        """The metric's key in the rows of a ledger."""
        return split_endpoint(self.name)[1]

    @property
    def title(self) -> str:
        """The metric as people call it."""
        return TITLES.get(self.metric, self.metric)

    @property
    def full_title(self) -> str:
        """Metric and phase."""
        return f"{self.title} {PHASE_TITLES[self.phase]}"

    @property
    def lower_is_better(self) -> bool:
        """True for losses, False for recalls and scores of captions."""
        return self.metric in LOSS_METRICS


def rows_by_run(rows: Sequence[LedgerRow]) -> dict[tuple[str, int, str], LedgerRow]:
    """Rows by arm, seed and stage."""
    return {(row.arm, row.seed, row.stage): row for row in rows}


def stages_of(plan: Plan, endpoint: Endpoint) -> tuple[str, ...]:
    """The stages that an endpoint is of."""
    pretraining, *finetunings = stage_names(plan)
    return (pretraining,) if endpoint.phase == "pretraining" else tuple(finetunings)


def endpoint_value(rows: Rows, plan: Plan, endpoint: Endpoint, arm: str, seed: int) -> float | None:
    """An endpoint of one arm and seed; of fine-tuning the geometric mean over its stages, so that each counts alike.

    The log ratio of two such values is the mean of the stages' log ratios.

    Returns:
        None if a stage is missing, or a value is not finite or not above zero, and so has no ratio.
    """
    logs = []
    for stage in stages_of(plan, endpoint):
        row = rows.get((arm, seed, stage))
        value = row.metrics.get(plan.endpoints.split, {}).get(endpoint.metric, 0.0) if row else 0.0
        if not 0 < value < math.inf:
            return None
        logs.append(math.log(value))
    return math.exp(sum(logs) / len(logs))


def endpoint_values(rows: Rows, plan: Plan, endpoint: Endpoint, arm: str) -> dict[int, float]:
    """An endpoint of one arm by seed, in the plan's order; seeds without a value are left out."""
    found = {seed: endpoint_value(rows, plan, endpoint, arm, seed) for seed in plan.seeds}
    return {seed: value for seed, value in found.items() if value is not None}
