"""The training step: from a batch to gradients to new weights.

The exact gradients of CoCa's loss over the global batch, computed in pieces and on several ranks.

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

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.batch import IGNORE_INDEX, Batch
from grr_coca.checkpoint import Checkpoint
from grr_coca.evaluate.split import Scaling
from grr_coca.losses import EmbeddedPairs, LossWeights, coca_loss, contrastive_loss, same_pair
from grr_coca.model import CoCa
from grr_coca.ranks import Ranks
from grr_coca.train.blocks import checkpoint_blocks, compile_blocks
from grr_coca.train.optimizer import Ema, Optimizers, freeze
from grr_coca.train.parallel import ForwardPass, ParallelModel, keep_freed_memory, scalar_parameters
from grr_coca.train.recipe import Precision, Recipe


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


@dataclass(frozen=True)
class Trainer:
    """Everything that a training step needs besides its batch."""

    model: ParallelModel
    optimizers: Optimizers
    losses: LossWeights
    precision: AbstractContextManager
    ema: Ema | None

    def step(self, micro_batches: Sequence[Batch], num_tokens: int, step: int) -> dict[str, float]:
        """Forward pass, backward pass and update. Returns the metrics of the step, which are the same on every rank.

        If the loss or a gradient is not finite, weights and optimizer stay as they are, on all ranks.

        Args:
            micro_batches: this rank's share of the global batch.
            num_tokens: tokens to predict in the global batch.
            step: number of the step, counted from 0.
        """
        losses = compute_gradients(self.model, micro_batches, num_tokens, self.losses, self.precision)
        grad_norm = self.optimizers.clip()
        metrics = {**losses._asdict(), "grad_norm": grad_norm}
        values = torch.stack([value.double() for value in metrics.values()]).tolist()  # waits for the device once
        if all(map(math.isfinite, values)):
            self.optimizers.update(step)
            self.model.raw.clamp_logit_scale()
            if self.ema is not None:
                self.ema.update()
        else:
            self.optimizers.zero_grad()
        return {**dict(zip(metrics, values, strict=True)), "lr": self.optimizers.learning_rate(step)}

    @torch.no_grad()
    def set_scaling(self, scaling: Scaling) -> None:
        """Give the model, and the running average of its weights, this temperature and bias."""
        for name, value in scaling._asdict().items():
            if value is not None:
                getattr(self.model.raw, name).copy_(value)
                if self.ema is not None:
                    self.ema.set(name, value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context, the model has the running average of its weights, if there is one. So it is evaluated
        and saved."""
        if self.ema is None:
            yield
            return
        try:
            with self.ema.applied():
                self.model.forget_gathered()
                yield
        finally:
            self.model.forget_gathered()


def build_trainer(recipe: Recipe, start: Checkpoint, ranks: Ranks) -> Trainer:
    """The trainer of a checkpoint's model, which is copied to or sharded over the ranks."""
    if ranks.device.type == "cpu":
        keep_freed_memory()
    model = start.model.to(ranks.device).train()
    freeze(model, recipe.freeze)
    if recipe.compile:
        compile_blocks(model, recipe.gradient_checkpointing)
    elif recipe.gradient_checkpointing:
        checkpoint_blocks(model)
    parallel = ParallelModel(model, recipe.parallelism, ranks)
    # After the model is sharded, so that the state of a parameter is sharded as the parameter is.
    optimizers = Optimizers(model, recipe.optimizer, recipe.schedule)
    ema = None if recipe.ema is None else Ema(model, recipe.ema)
    return Trainer(parallel, optimizers, recipe.losses.weights, autocast(recipe.precision, ranks.device), ema)


def count_tokens(batches: Sequence[Batch]) -> int:
    """Number of tokens to predict in these batches."""
    return sum(int((batch.labels != IGNORE_INDEX).sum()) for batch in batches)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context of a run's forward passes: bf16 autocast, or nothing. It can be entered again and again."""
    assert precision != "auto", "`decide` replaces it before"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
