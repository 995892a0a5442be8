"""Exact gradients of a batch that does not fit into memory (`micro_batch_size`).

The captioning loss is a sum over tokens, so the gradients of micro-batches add up. The contrastive loss compares every
pair with every other pair, and so do the losses of a text teacher and of siblings. For these losses, the graph is cut
at the embeddings (GradCache, Gao et al., arXiv 2101.06983):

1. Compute the embeddings of all micro-batches, without a graph.
2. Compute these losses from the embeddings, and their gradients with respect to the embeddings.
3. In each micro-batch, a linear function of its embeddings, with these gradients as factors, replaces these losses. The
   gradients with respect to the weights stay the same.

Shapes: b pairs of this rank, n pairs of a micro-batch, E embedding width.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from grr_coca.data.batch import Batch, copy_ahead
from grr_coca.model.coca import CoCa
from grr_coca.model.losses import (
    CaptioningLoss,
    EmbeddedPairs,
    Losses,
    LossWeights,
    captioning_loss,
    combine_losses,
    comparison_loss,
)
from grr_coca.train.parallel import ParallelModel


def accumulate_gradients(
    model: ParallelModel,
    micro_batches: Sequence[Batch],
    num_tokens: int,
    weights: LossWeights,
    precision: AbstractContextManager,
    scale: float = 1.0,
) -> Losses:
    """Compute the gradients of `batch_loss` over all micro-batches, in the memory that a single micro-batch needs.

    Each micro-batch is run twice, the first time without a graph. The gradients are those of the loss times the number
    of ranks. The result is this rank's part of the losses, detached from the graph. The arguments are those of
    `grr_coca.train.step.compute_gradients`.
    """
    ranks = model.ranks
    one_by_one = [[batch] for batch in micro_batches]
    with precision:
        parts = [embed_pairs(model.raw, batch) for (batch,) in copy_ahead(one_by_one, ranks.device)]
    columns = zip(*parts, strict=True)
    pairs = EmbeddedPairs(*(None if x[0] is None else torch.cat(x) for x in columns))  # type: ignore[arg-type]
    pairs.image.requires_grad_()
    pairs.text.requires_grad_()
    compared = comparison_loss(model.raw, pairs, weights, ranks)
    (scale * ranks.size * compared.total).backward()
    assert pairs.image.grad is not None
    assert pairs.text.grad is not None

    sizes = [len(batch) for batch in micro_batches]
    factors = zip(pairs.image.grad.split(sizes), pairs.text.grad.split(sizes), strict=True)
    captions: list[Tensor] = []
    for (batch,), of_batch in zip(copy_ahead(one_by_one, ranks.device), factors, strict=True):
        run = partial(_captioning_and_surrogate_loss, batch, of_batch, num_tokens, weights)
        with model.exchange(gradients=len(captions) == len(micro_batches) - 1):
            with precision:
                captioned, cut = model(run)
            (scale * ranks.size * weights.captioning * captioned.total + cut).backward()
        captions.append(torch.stack(captioned).detach())
        del captioned, cut  # otherwise, the rest of their graph would add to the memory of the next micro-batch
    summed = CaptioningLoss(*torch.stack(captions).sum(dim=0))
    return combine_losses(compared._replace(total=compared.total.detach()), summed, weights)


@torch.no_grad()
def embed_pairs(model: CoCa, batch: Batch) -> EmbeddedPairs:
    """Embed a batch without a graph, and without running the multimodal decoder."""
    image = model.encode_image(batch.images, batch.kept_patches, batch.features).embedding
    text = model.encode_text(batch.token_ids, batch.lengths)
    return EmbeddedPairs(image, text, batch.caption_ids, batch.image_ids, batch.teacher, batch.concept_ids)


def _captioning_and_surrogate_loss(
    batch: Batch,
    factors: tuple[Float[Tensor, "n E"], Float[Tensor, "n E"]],
    num_tokens: int,
    weights: LossWeights,
    model: CoCa,
) -> tuple[CaptioningLoss, Float[Tensor, ""]]:
    """Return the captioning loss of a micro-batch, and the sum of its embeddings multiplied by the given factors.

    The factors are the gradients of the losses that compare pairs, so the sum has the same gradients as these losses.
    """
    output = model(batch.images, batch.token_ids, batch.lengths, batch.kept_patches, features=batch.features)
    lm_head = model.multimodal_decoder.lm_head.weight
    captioned = captioning_loss(output.states, lm_head, batch.next_tokens, num_tokens, weights.z_per_captioning)
    image_factor, text_factor = factors
    cut = (output.image_embedding * image_factor).sum() + (output.text_embedding * text_factor).sum()
    return captioned, cut
