"""The captioning loss: cross-entropy of each next token, the end token included.

Shapes: M tokens to predict, D width of the states that predict them, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.layers.precision import at_least_fp32
from grr_coca.losses.linear_cross_entropy import LinearCrossEntropy, tokens_at_once


class CaptioningLoss(NamedTuple):
    """Means over the tokens of the whole batch, in nats. Differentiate `trained`, which is `captioning` + z_weight ·
    `z`. The other two are for the log."""

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
    """Mean cross-entropy of tokens, predicted with the logits `states @ lm_head.T`.

    Args:
        states: the state that predicts each token.
        lm_head: the weight of the head.
        labels: the tokens, end tokens included.
        num_tokens: number of tokens to divide the sum by; None: the tokens given here. Pass the number of a larger
            batch to get this part's share of its loss: the shares of all parts add up to the loss.
        z_weight: weight of the z-loss, the mean of log² Z, where Z is the denominator of the softmax. It keeps logits
            from drifting (PaLM, arXiv 2204.02311, section 5).

    Raises:
        ValueError: there are more states than labels, or fewer.
    """
    if len(states) != len(labels):
        raise ValueError(f"{len(states)} states and {len(labels)} labels: every token of a caption needs its label")
    sums = LinearCrossEntropy.apply(states, lm_head, labels, z_weight)
    return CaptioningLoss(*(part / (len(labels) if num_tokens is None else num_tokens) for part in sums))


@torch.no_grad()
def token_losses(
    states: Float[Tensor, "M D"], lm_head: Float[Tensor, "V D"], labels: Int[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """Cross-entropy of each token, in nats, without a gradient. `captioning_loss` is its mean."""
    stretch = tokens_at_once(lm_head)
    parts = [
        F.cross_entropy(at_least_fp32(F.linear(x, lm_head)), label, reduction="none")
        for x, label in zip(states.split(stretch), labels.split(stretch), strict=True)
    ]
    return torch.cat(parts)
