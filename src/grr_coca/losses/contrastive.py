"""The contrastive loss: it pulls the image and text of a pair together, and pushes different pairs apart.

Shapes: B pairs of the batch, b pairs of this rank, E embedding width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class EmbeddedPairs(NamedTuple):
    """Embeddings of unit length. Text i belongs to image i."""

    image: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]


def same_pair(
    caption_ids: Int[Tensor, " b"],
    image_ids: Int[Tensor, " b"],
    columns: tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None = None,
) -> Bool[Tensor, "b B"]:
    """Which pairs have the same caption or the same image. Such pairs are not negatives of each other.

    `columns`: caption and image ids of the whole batch; None: the batch is the rows themselves.
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
    """The share of b rows in the contrastive loss of a batch of B pairs. The shares of all rows add up to the loss.

    Without a bias this is CLIP's loss: the mean of the cross-entropy of each image over all texts and of each text over
    all images. With a bias it is SigLIP's (arXiv 2303.15343): for every image and every text, a binary classification
    of whether they match, summed over texts and averaged over images.

    Args:
        rows: the pairs whose share is computed.
        columns: all pairs of the batch. The rows are compared with them.
        logit_scale: logarithm of the inverse temperature.
        logit_bias: bias of the sigmoid loss; None: the softmax loss.
        same: pairs with the same caption or image, see `same_pair`. They are left out of the comparison.
        first_row: index of the first row among the columns.
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
