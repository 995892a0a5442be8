"""The exact gradients of CoCa's loss over the global batch, computed in pieces and on several ranks.

The loss itself is `grr_coca.losses.batch_loss`, for a batch in one piece on one process. A test checks that its
gradients are equal to those computed here.

The captioning loss is a sum over tokens, so the gradients of the pieces add up. The contrastive loss compares every
pair with every other, so it is cut at the embeddings (Gao et al., arXiv 2101.06983):

1. Compute the embeddings of all pieces.
2. Compute the contrastive loss, and its gradient with respect to the embeddings.
3. For each piece, differentiate `<embedding, gradient>`, a sum over pairs. Its gradient with respect to the weights is
   that of the loss.

Shapes: b pairs of this rank, B pairs of the global batch, E embedding width.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.batch import Batch
from grr_coca.losses import EmbeddedPairs, LossWeights, coca_loss, contrastive_loss, same_pair
from grr_coca.model import CoCa
from grr_coca.ranks import Ranks
from grr_coca.train.step.parallel import ForwardPass, ParallelModel, scalar_parameters


class BatchLosses(NamedTuple):
    """The losses of the global batch, in nats, detached from the graph."""

    contrastive: Float[Tensor, ""]
    captioning: Float[Tensor, ""]
    coca: Float[Tensor, ""]
    z: Float[Tensor, ""]


class ContrastiveGradient(NamedTuple):
    """The contrastive loss of the global batch, and its gradient with respect to this rank's embeddings."""

    loss: Float[Tensor, ""]
    image: Float[Tensor, "b E"]
    text: Float[Tensor, "b E"]


def compute_gradients(
    model: ParallelModel,
    micro_batches: Sequence[Batch],
    num_tokens: int,
    weights: LossWeights,
    precision: AbstractContextManager,
) -> BatchLosses:
    """Compute the gradients of the global batch's CoCa loss. The parameters' gradients must be clear before.

    Those of temperature and bias are replaced; to all others, the new ones are added.

    Args:
        model: the model on all ranks.
        micro_batches: this rank's share of the batch. All ranks have the same number of pairs. A single micro-batch is
            run once. Several are each run twice, the first time without a graph, so that they need the memory of one.
        num_tokens: tokens to predict in the global batch.
        weights: weights of the losses.
        precision: context of the forward passes.
    """
    ranks = model.ranks
    tokens = torch.tensor(num_tokens, device=ranks.device)
    kept = None
    with precision:
        if len(micro_batches) == 1:
            kept = model(micro_batches[0].to(ranks.device), tokens, weights.z_per_captioning)
            pieces = [EmbeddedPairs(kept.image_embedding, kept.text_embedding)]
        else:
            pieces = [model.embed(batch.to(ranks.device)) for batch in micro_batches]
    embedded = EmbeddedPairs(*(torch.cat(column) for column in zip(*pieces, strict=True)))
    contrast = contrastive_gradient(model.raw, embedded, micro_batches, weights.contrastive, ranks)

    sizes = [len(batch) for batch in micro_batches]
    gradients = map(EmbeddedPairs, contrast.image.split(sizes), contrast.text.split(sizes))
    shares = torch.zeros(2, device=ranks.device, dtype=contrast.loss.dtype)
    for batch, gradient in zip(micro_batches, gradients, strict=True):
        with model.exchange(gradients=batch is micro_batches[-1]):
            shares += _backward(model, batch, kept, gradient, tokens, weights, precision)
    captioning, z = ranks.sum(shares)
    return BatchLosses(contrast.loss, captioning, coca_loss(contrast.loss, captioning, weights), z)


def contrastive_gradient(
    model: CoCa, local: EmbeddedPairs, batches: Sequence[Batch], weight: float, ranks: Ranks
) -> ContrastiveGradient:
    """The contrastive loss of the global batch and its gradients. The gradients of temperature and bias are written to
    their parameters.

    Each rank compares its own pairs with those of all ranks, which makes b · B similarities. The embeddings are
    gathered once. On the way back, their gradients are summed over the ranks.
    """
    num_local, first_row = len(local.image), ranks.rank * len(local.image)
    columns = EmbeddedPairs(*(ranks.gather(embedding.detach()).requires_grad_() for embedding in local))
    rows = EmbeddedPairs(*(embedding[first_row : first_row + num_local] for embedding in columns))
    ids = [torch.cat([getattr(b, name) for b in batches]).to(ranks.device) for name in ("caption_ids", "image_ids")]
    same = same_pair(ids[0], ids[1], columns=(ranks.gather(ids[0]), ranks.gather(ids[1])))
    share = contrastive_loss(rows, columns, model.logit_scale, model.logit_bias, same, first_row)

    scalars = [scalar for scalar in scalar_parameters(model) if scalar.requires_grad]
    image, text, *by_scalar = torch.autograd.grad(share, [*columns, *scalars])
    loss, *by_scalar = ranks.sum(torch.stack([share.detach(), *by_scalar]))
    for scalar, gradient in zip(scalars, by_scalar, strict=True):
        scalar.grad = weight * gradient
    return ContrastiveGradient(loss, ranks.scatter_sum(image), ranks.scatter_sum(text))


def _backward(
    model: ParallelModel,
    batch: Batch,
    kept: ForwardPass | None,
    wanted: EmbeddedPairs,
    num_tokens: Int[Tensor, ""],
    weights: LossWeights,
    precision: AbstractContextManager,
) -> Float[Tensor, "2"]:
    """The backward pass of one piece. Returns the piece's shares of the captioning loss and the z-loss.

    `kept`: its forward pass, if that was run with a graph. `wanted`: the gradients of its embeddings.
    """
    with precision:
        output = kept or model(batch.to(model.ranks.device), num_tokens, weights.z_per_captioning)
    contrastive = (output.image_embedding * wanted.image).sum() + (output.text_embedding * wanted.text).sum()
    loss = coca_loss(contrastive, output.captioning.trained, weights)
    # The exchange averages gradients over the ranks, but their sum is needed.
    (model.ranks.size * loss).backward()
    return torch.stack([output.captioning.captioning, output.captioning.z])
