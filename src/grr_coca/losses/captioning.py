"""The captioning loss: cross-entropy of each next token, the end token included.

Shapes: M tokens to predict, D width of the states that they are predicted from, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.layers.precision import at_least_fp32
from grr_coca.losses.linear_cross_entropy import LinearCrossEntropy, tokens_at_once


class CaptioningLoss(NamedTuple):
    """Means over the whole batch's tokens, in nats. `trained` = `captioning` + z_weight · `z` is the one to
    differentiate; the others are for the log."""

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
        states: what each token is predicted from.
        lm_head: the weight of the head.
        labels: the tokens, end tokens among them.
        num_tokens: those of a larger batch, whose loss is the sum of what its parts give; None: these tokens alone.
        z_weight: weight of the z-loss, the mean of log² Z for the softmax's denominator Z, which keeps logits from
            drifting (PaLM, arXiv 2204.02311, section 5).
    """
    sums = LinearCrossEntropy.apply(states, lm_head, labels, z_weight)
    return CaptioningLoss(*(part / (len(labels) if num_tokens is None else num_tokens) for part in sums))


@torch.no_grad()
def token_losses(
    states: Float[Tensor, "M D"], lm_head: Float[Tensor, "V D"], labels: Int[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """Cross-entropy of each token, in nats, without a gradient: what `captioning_loss` is the mean of."""
    stretch = tokens_at_once(lm_head)
    parts = [
        F.cross_entropy(at_least_fp32(F.linear(x, lm_head)), label, reduction="none")
        for x, label in zip(states.split(stretch), labels.split(stretch), strict=True)
    ]
    return torch.cat(parts)
