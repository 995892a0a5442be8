"""The CoCa loss: the weighted sum of both (arXiv 2205.01917, section 3.1)."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Losses(NamedTuple):
    """The parts and the weighted sum, each a scalar in nats."""

    contrastive: Float[Tensor, ""]
    captioning: Float[Tensor, ""]
    coca: Float[Tensor, ""]


def coca_loss(
    contrastive: Float[Tensor, ""], captioning: Float[Tensor, ""], contrastive_weight: float, captioning_weight: float
) -> Losses:
    """The weighted sum that is trained on. A weight of zero keeps its branch in the graph, so no parameter is
    ever without a gradient."""
    return Losses(contrastive, captioning, contrastive_weight * contrastive + captioning_weight * captioning)
