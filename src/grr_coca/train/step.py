"""The training step: from a batch to gradients to new weights.

The gradients are the exact ones of CoCa's loss over the global batch, in any number of micro-batches and on any number
of ranks. Each micro-batch differentiates `grr_coca.losses.batch_loss`. The captioning loss is a sum over tokens, so the
gradients of the micro-batches add up. The contrastive loss compares every pair with every other, so it is cut at the
embeddings (Gao et al., arXiv 2101.06983):

1. Compute the embeddings of all micro-batches.
2. Compute the contrastive loss, and its gradient with respect to the embeddings.
3. In each micro-batch, a linear function of the embeddings with this gradient replaces the contrastive loss. So the
   gradient with respect to the weights is the same.

Shapes: b pairs of this rank, B pairs of the global batch, E embedding width.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from grr_coca.batch import Batch
from grr_coca.checkpoint import Checkpoint
from grr_coca.evaluate.split import Scaling
from grr_coca.losses import Contrast, EmbeddedPairs, Losses, LossWeights, contrastive_loss, same_pair
from grr_coca.model import CoCa
from grr_coca.ranks import Ranks
from grr_coca.train.blocks import checkpoint_blocks, compile_blocks
from grr_coca.train.optimizer import Ema, Optimizers, freeze
from grr_coca.train.parallel import ParallelModel, keep_freed_memory, scalar_parameters
from grr_coca.train.recipe import Precision, Recipe


def compute_gradients(
    model: ParallelModel,
    micro_batches: Sequence[Batch],
    num_tokens: int,
    weights: LossWeights,
    precision: AbstractContextManager,
) -> Losses:
    """Compute the gradients of the global batch's CoCa loss, and return its losses, detached from the graph.

    The parameters' gradients must be clear before. Those of temperature and bias are replaced; to all others, the new
    ones are added.

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
    shares = []
    for batch, contrast in zip(micro_batches, _contrasts(model, micro_batches, weights, precision), strict=True):
        with model.exchange(gradients=batch is micro_batches[-1]):
            with precision:
                losses = model(batch.to(ranks.device), weights, tokens, contrast)
            # The exchange averages gradients over the ranks, but their sum is needed.
            (ranks.size * losses.total).backward()
        shares.append(torch.stack(losses).detach())
        del losses  # what is left of its graph would take memory beside that of the next micro-batch
    return Losses(*ranks.sum(torch.stack(shares).sum(dim=0)))


class ContrastiveGradient(NamedTuple):
    """This rank's share of the contrastive loss of the global batch, and the gradient of the whole loss with respect to
    this rank's embeddings."""

    share: Float[Tensor, ""]
    image: Float[Tensor, "b E"]
    text: Float[Tensor, "b E"]

    def split(self, sizes: Sequence[int]) -> "list[ContrastiveGradient]":
        """Split the gradient into one for each micro-batch. The first one has the whole share of the loss, so that
        their sum is right."""
        shares = (self.share, *[torch.zeros_like(self.share)] * (len(sizes) - 1))
        return list(map(ContrastiveGradient, shares, self.image.split(sizes), self.text.split(sizes)))

    def contrast(self, pairs: EmbeddedPairs) -> Float[Tensor, ""]:
        """A linear function of the embeddings that replaces the contrastive loss: it has the same value (`share`) and
        gradient."""
        linear = (pairs.image * self.image).sum() + (pairs.text * self.text).sum()
        return self.share + linear - linear.detach()


def contrastive_gradient(
    model: CoCa, local: EmbeddedPairs, batches: Sequence[Batch], weight: float, ranks: Ranks
) -> ContrastiveGradient:
    """The gradient of the global batch's contrastive loss with respect to this rank's embeddings. The gradients of
    temperature and bias, times `weight`, are written to their parameters.

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
    for scalar, gradient in zip(scalars, by_scalar, strict=True):
        scalar.grad = weight * ranks.sum(gradient)
    return ContrastiveGradient(share.detach(), ranks.scatter_sum(image), ranks.scatter_sum(text))


def _contrasts(
    model: ParallelModel, micro_batches: Sequence[Batch], weights: LossWeights, precision: AbstractContextManager
) -> list[Contrast]:
    """For each micro-batch, a function from its embeddings to its part of the global batch's contrastive loss."""

    def gradient_at(local: EmbeddedPairs) -> ContrastiveGradient:
        return contrastive_gradient(model.raw, local, micro_batches, weights.contrastive, model.ranks)

    if len(micro_batches) == 1:
        return [lambda pairs: gradient_at(pairs).contrast(pairs)]
    with precision:
        embedded = [model.embed(batch.to(model.ranks.device)) for batch in micro_batches]
    gradient = gradient_at(EmbeddedPairs(*(torch.cat(column) for column in zip(*embedded, strict=True))))
    return [part.contrast for part in gradient.split([len(batch) for batch in micro_batches])]


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
        metrics = {
            "contrastive": losses.contrastive,
            "captioning": losses.captioning,
            "coca": losses.coca,
            "z": losses.z,
            "grad_norm": grad_norm,
        }
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
        """Set the temperature and bias of the model and of the running average of its weights."""
        for name, value in scaling._asdict().items():
            if value is not None:
                getattr(self.model.raw, name).copy_(value)
                if self.ema is not None:
                    self.ema.set(name, value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the weights of the model are their running average, if there is one. Models are evaluated
        and saved in it."""
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
    return sum(int(batch.predicts_token.sum()) for batch in batches)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context of a run's forward passes: bf16 autocast, or nothing. It can be entered again and again."""
    assert precision != "auto", "`decide` replaces it before"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
