"""CoCa's losses, pure functions of tensors (arXiv 2205.01917, section 3.1).

Shapes: B pairs, E embedding width, M tokens to predict, D width of what they are predicted from, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grr_coca.layers.precision import at_least_fp32

LOGITS_AT_ONCE = 2**25
"""128 MB of them in fp32: a stretch of 679 tokens with CLIP's vocabulary, long enough for full speed."""


class Losses(NamedTuple):
    """The parts and the weighted sum, each a scalar in nats."""

    contrastive: Float[Tensor, ""]
    captioning: Float[Tensor, ""]
    coca: Float[Tensor, ""]


class EmbeddedPairs(NamedTuple):
    """Unit vectors; text i belongs to image i."""

    image: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]


def same_pair(
    caption_ids: Int[Tensor, " b"],
    image_ids: Int[Tensor, " b"],
    columns: tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None = None,
) -> Bool[Tensor, "b B"]:
    """Which pairs say the same: equal caption or equal image. They are not negatives of each other. `columns`:
    caption and image ids of the whole batch, where the rows are but a share of it."""
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
    """What b rows, from `first_row` on, contribute to the loss of B pairs; over all rows it adds up to that loss.

    Without a bias, cross-entropy of each image over all texts and of each text over all images, averaged; with one,
    SigLIP's loss (arXiv 2303.15343): any image and text match or do not, a sum over texts, averaged over images.
    `logit_scale` is the logarithm of the inverse temperature. Others that say the `same` as a pair are left out.
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
    sums = _HeadAndCrossEntropy.apply(states, lm_head, labels, z_weight)
    return CaptioningLoss(*(part / (len(labels) if num_tokens is None else num_tokens) for part in sums))


class _HeadAndCrossEntropy(torch.autograd.Function):
    """The head and its loss over a stretch of tokens at a time. Gradients are made on the way forward, where a
    stretch's logits turn into them in place: neither are all logits kept, nor any made twice."""

    @staticmethod
    def forward(ctx, states, lm_head, labels, z_weight):  # type: ignore[no-untyped-def]  # noqa: ANN
        stretch = max(1, LOGITS_AT_ONCE // len(lm_head))
        by_state, by_head = torch.empty_like(states), torch.zeros_like(lm_head)
        nll = z = at_least_fp32(states.new_zeros(()))
        for x, label, by_x in zip(*(t.split(stretch) for t in (states, labels[:, None], by_state)), strict=True):
            logits = at_least_fp32(F.linear(x, lm_head))  # m V
            log_probs = logits.log_softmax(-1)
            nll_x = -log_probs.gather(1, label)
            log_z = logits.gather(1, label) + nll_x
            nll, z = nll + nll_x.sum(), z + log_z.square().sum()
            if any(ctx.needs_input_grad):
                gradient = log_probs.exp_()  # of nll: the probabilities, less 1 at the label
                if z_weight:
                    gradient *= 1 + 2 * z_weight * log_z
                gradient.scatter_add_(1, label, torch.full_like(nll_x, -1.0))
                by_x.copy_(gradient.type_as(x) @ lm_head)
                by_head += gradient.type_as(x).T @ x
        ctx.save_for_backward(by_state, by_head)
        ctx.mark_non_differentiable(nll, z)
        return nll + z_weight * z, nll, z

    @staticmethod
    def backward(ctx, by_sum, *_):  # type: ignore[no-untyped-def]  # noqa: ANN
        by_state, by_head = ctx.saved_tensors
        return by_sum * by_state, by_sum * by_head, None, None


def coca_loss(
    contrastive: Float[Tensor, ""], captioning: Float[Tensor, ""], contrastive_weight: float, captioning_weight: float
) -> Losses:
    """The weighted sum that is trained on. A weight of zero keeps its branch in the graph, so no parameter is
    ever without a gradient."""
    return Losses(contrastive, captioning, contrastive_weight * contrastive + captioning_weight * captioning)
