"""What the paper of GRR-CoCa reports, to be held against a study of the same two models.

*GRR-CoCa: Leveraging LLM Mechanisms in Multimodal Model Architectures* (arXiv 2507.18009), abstract: changes of
GRR-CoCa over Baseline CoCa in per cent, after pretraining and on average over three fine-tunings.
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

Agreement = Literal["excluded", "doubtful", "within", "exceeded"]


def reported_change(endpoint: str, arm: str, baseline: str) -> float | None:
    """The paper's figure for an endpoint, in per cent; None if it has none, or the models are others."""
    return REPORTED.get(endpoint) if (arm, baseline) == ARMS else None


def agreement(effect: Effect, reported: float, num_endpoints: int) -> Agreement | None:
    """Whether a study excludes a reported gain as too large, has it within its interval, or exceeds it.

    Args:
        effect: what the study found.
        reported: the gain, in per cent, below zero.
        num_endpoints: how many gains are looked at. A gain is excluded or exceeded by an interval that is corrected for
            them (Dunn, Journal of the American Statistical Association 56, 1961); it is doubtful if only the 95 %
            interval of the endpoint by itself leaves it out.
    """
    if effect.low is None or effect.high is None:
        return None
    if effect.low <= reported <= effect.high:
        return "within"
    low, high = effect.interval_among(num_endpoints)
    if low <= reported <= high:
        return "doubtful"
    return "excluded" if low > reported else "exceeded"
