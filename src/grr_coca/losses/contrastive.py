"""The contrastive loss: it draws image and text of a pair together, and those of different pairs apart.

Shapes: B pairs of the batch, b of them on this rank, E embedding width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class EmbeddedPairs(NamedTuple):
    """Unit vectors; text i belongs to image i."""

    image: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]


def same_pair(
    caption_ids: Int[Tensor, " b"],
    image_ids: Int[Tensor, " b"],
    columns: tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None = None,
) -> Bool[Tensor, "b B"]:
    """Which pairs have the same caption or the same image, so are no negatives of each other.

    `columns`: caption and image ids of the whole batch, if the rows are only a part of it.
    """
    all_caption_ids, all_image_ids = columns or (caption_ids, image_ids)
    return (caption_ids[:, None] == all_caption_ids) | (image_ids[:, None] == all_image_ids)


def contrastive_loss(
    rows: EmbeddedPairs,
    columns: EmbeddedPairs,
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""] | None,
    same: Bool[Tensor, "b B"],
    first_row: int,
) -> Float[Tensor, ""]:
    """What b rows contribute to the contrastive loss of a batch of B pairs. Over all rows it adds up to that loss.

    Without a bias it is CLIP's loss: the cross-entropy of each image over all texts, and of each text over all images,
    averaged. With one it is SigLIP's (arXiv 2303.15343): every image and every text match or do not; the sum over texts
    is averaged over images.

    Args:
        rows: the pairs that contribute.
        columns: all pairs of the batch, with which they are compared.
        logit_scale: logarithm of the inverse temperature.
        logit_bias: that of the sigmoid loss, or None.
        same: pairs with the same caption or image, see `same_pair`; they are left out of the comparison.
        first_row: the place of the first row among the columns.
    """
    B = same.shape[1]
    target = torch.arange(first_row, first_row + len(same), device=same.device)
    itself = target[:, None] == torch.arange(B, device=same.device)
    others = same & ~itself
    # bf16 would round a similarity of 1 at temperature 0.01 by half a nat.
    with torch.autocast(same.device.type, enabled=False):
        by_image = logit_scale.exp() * rows.image @ columns.text.T  # b B
        if logit_bias is not None:
            logits = torch.where(itself, 1, -1) * (by_image + logit_bias)
            return -F.logsigmoid(logits).masked_fill(others, 0.0).sum() / B
        by_text = rows.text @ (logit_scale.exp() * columns.image).T  # b B
    nll = [F.cross_entropy(x.masked_fill(others, -torch.inf), target, reduction="sum") for x in (by_image, by_text)]
    return (nll[0] + nll[1]) / (2 * B)
