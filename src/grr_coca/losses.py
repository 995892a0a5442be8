"""CoCa's losses, pure functions of tensors (arXiv 2205.01917, section 3.1).

Shapes: B pairs, T text positions, E embedding width, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grr_coca.batch import IGNORE_INDEX
from grr_coca.layers.precision import at_least_fp32


class Losses(NamedTuple):
    """The parts and the weighted sum, each a scalar in nats."""

    contrastive: Float[Tensor, ""]
    captioning: Float[Tensor, ""]
    coca: Float[Tensor, ""]

    def detached(self) -> dict[str, Tensor]:
        """The values by name, without their graph."""
        return {name: loss.detach() for name, loss in self._asdict().items()}


def same_pair(caption_ids: Int[Tensor, " B"], image_ids: Int[Tensor, " B"]) -> Bool[Tensor, "B B"]:
    """Which pairs say the same: equal caption or equal image. They are not negatives of each other."""
    return (caption_ids[:, None] == caption_ids) | (image_ids[:, None] == image_ids)


def contrastive_loss(
    image_embedding: Float[Tensor, "B E"],
    text_embedding: Float[Tensor, "B E"],
    logit_scale: Float[Tensor, ""],
    same: Bool[Tensor, "B B"],
) -> Float[Tensor, ""]:
    """Cross-entropy of each image over the batch's texts and of each text over its images, averaged.

    Args:
        image_embedding: of unit length.
        text_embedding: of unit length, row i belonging to image i.
        logit_scale: the logarithm of the inverse temperature.
        same: pairs that say the same (`same_pair`); off the diagonal they are left out of both denominators.
    """
    # bf16 would round a similarity of 1 at temperature 0.01 by half a nat.
    with torch.autocast(image_embedding.device.type, enabled=False):
        logits = logit_scale.exp() * image_embedding @ text_embedding.T  # image, text
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(same & ~itself, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def captioning_loss(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Cross-entropy per real token, the end token included: the mean over the whole batch, not over rows."""
    return F.cross_entropy(at_least_fp32(logits.flatten(0, 1)), labels.flatten(), ignore_index=IGNORE_INDEX)


def coca_loss(
    contrastive: Float[Tensor, ""],
    captioning: Float[Tensor, ""],
    contrastive_weight: float,
    captioning_weight: float,
) -> Losses:
    """The weighted sum that is trained on. A weight of zero keeps its branch in the graph, so no parameter is
    ever without a gradient."""
    return Losses(contrastive, captioning, contrastive_weight * contrastive + captioning_weight * captioning)
