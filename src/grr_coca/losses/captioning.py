"""The captioning loss: cross-entropy of each next token, the end token included.

Shapes: M tokens to predict, D width of what they are predicted from, V vocabulary.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.losses.linear_cross_entropy import LinearCrossEntropy


class CaptioningLoss(NamedTuple):
    """Means over the whole batch's tokens, in nats. `trained`: `captioning` + weight · `z`, the one with a gradient."""

    trained: Float[Tensor, ""]
    captioning: Float[Tensor, ""]
    z: Float[Tensor, ""]


def captioning_loss(
    states: Float[Tensor, "M D"],
    lm_head: Float[Tensor, "V D"],
    labels: Int[Tensor, " M"],
    num_tokens: Int[Tensor, ""] | int | None = None,
    z_weight: float = 0.0,
) -> CaptioningLoss:
    """Cross-entropy per token, the end token included, the logits being `states` · `lm_head`ᵀ; and with a weight the
    z-loss, log² Z of the softmax's denominator Z (PaLM, arXiv 2204.02311, section 5). With the `num_tokens` of a
    larger batch, it is what these tokens contribute to that batch's loss."""
    sums = LinearCrossEntropy.apply(states, lm_head, labels, z_weight)
    return CaptioningLoss(*(part / (len(labels) if num_tokens is None else num_tokens) for part in sums))
