"""What the paper of GRR-CoCa reports, to be held against a study of the same two models.

*GRR-CoCa: Leveraging LLM Mechanisms in Multimodal Model Architectures* (2025), abstract: changes of GRR-CoCa over
Baseline CoCa in per cent, after pretraining and on average over three fine-tunings.
"""

from typing import Literal

from grr_coca.study.report.numbers.effect import Effect

REPORTED = {
    "pretraining/contrastive_loss": -27.25,
    "pretraining/perplexity": -3.71,
    "pretraining/coca_loss": -7.15,
    "finetuning/contrastive_loss": -13.66,
    "finetuning/perplexity": -5.18,
    "finetuning/coca_loss": -5.55,
}
ARMS = ("grr_coca", "baseline_coca")

Agreement = Literal["excluded", "within", "exceeded"]


def reported_change(endpoint: str, arm: str, baseline: str) -> float | None:
    """The paper's figure for an endpoint, in per cent; None if it has none, or the models are others."""
    return REPORTED.get(endpoint) if (arm, baseline) == ARMS else None


def agreement(effect: Effect, reported: float) -> Agreement | None:
    """Whether a study's interval excludes a reported gain as too large, holds it, or lies beyond it."""
    if effect.low is None or effect.high is None:
        return None
    if effect.low > reported:
        return "excluded"
    return "exceeded" if effect.high < reported else "within"
