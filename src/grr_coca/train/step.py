"""The training step: from a batch to gradients to new weights.

The gradients are the exact ones of CoCa's loss over the global batch, in any number of micro-batches and on any number
of ranks. Each micro-batch differentiates `grr_coca.model.losses.batch_loss`. The captioning loss is a sum over tokens,
so the gradients of the micro-batches add up. The contrastive loss compares every pair with every other, and the loss of
a text teacher every text with every other, so they are cut at the embeddings (Gao et al., arXiv 2101.06983):

1. Compute the embeddings of all micro-batches.
2. Compute the two losses, and their gradients with respect to the embeddings.
3. In each micro-batch, linear functions of the embeddings with these gradients replace the losses. So the gradient with
   respect to the weights is the same.

Shapes: b pairs and w words of this rank, B pairs of the global batch, E embedding width.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import Batch
from grr_coca.evaluate.split import Scaling
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.coca import CoCa
from grr_coca.model.losses import (
    BatchEmbeddings,
    Compare,
    ComparisonLosses,
    Labels,
    Losses,
    LossWeights,
    compared_losses,
)
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
    for batch, compare in zip(micro_batches, _comparisons(model, micro_batches, weights, precision), strict=True):
        with model.exchange(gradients=batch is micro_batches[-1]):
            with precision:
                losses = model(batch.to(ranks.device), weights, tokens, compare)
            # The exchange averages gradients over the ranks, but their sum is needed.
            (ranks.size * losses.total).backward()
        shares.append(torch.stack(losses).detach())
        del losses  # what is left of its graph would take memory beside that of the next micro-batch
    return Losses(*ranks.sum(torch.stack(shares).sum(dim=0)))


class CutLoss(NamedTuple):
    """A loss of the global batch, cut at the embeddings: this rank's share of it, and the gradient of the whole loss
    with respect to this rank's embeddings of images, captions and words. None: it does not depend on them."""

    share: Float[Tensor, ""]
    image: Float[Tensor, "b E"] | None = None
    text: Float[Tensor, "b E"] | None = None
    words: Float[Tensor, "w E"] | None = None

    def split(self, num_pairs: Sequence[int], num_words: Sequence[int]) -> "list[CutLoss]":
        """Split it into one for each micro-batch. The first one has the whole share, so that their sum is right."""
        shares = (self.share, *[torch.zeros_like(self.share)] * (len(num_pairs) - 1))
        columns = [
            [None] * len(sizes) if gradient is None else gradient.split(sizes)
            for gradient, sizes in ((self.image, num_pairs), (self.text, num_pairs), (self.words, num_words))
        ]
        return list(map(CutLoss, shares, *columns))

    def at(self, embedded: BatchEmbeddings) -> Float[Tensor, ""]:
        """A linear function of the embeddings that replaces the loss: it has the same value (`share`) and gradient."""
        linear = torch.zeros_like(self.share)
        for embedding, gradient in zip(embedded, self[1:], strict=True):
            if gradient is not None:
                linear = linear + (embedding * gradient).sum()
        return self.share + linear - linear.detach()


def cut_losses(
    model: CoCa, local: BatchEmbeddings, batches: Sequence[Batch], weights: LossWeights, ranks: Ranks
) -> tuple[CutLoss, CutLoss]:
    """The contrastive loss and the teacher loss of the global batch. The gradients of temperature and bias, times the
    weight of the contrastive loss, are written to their parameters.

    Each rank compares its own pairs with those of all ranks, which makes b · B similarities. The embeddings are
    gathered once. On the way back, their gradients are summed over the ranks.
    """

    def gather(tensor: Tensor) -> Tensor:
        return ranks.gather(tensor) if tensor.numel() else tensor

    def scatter_sum(gradient: Tensor | None) -> Tensor | None:
        return gradient if gradient is None or not gradient.numel() else ranks.scatter_sum(gradient)

    columns = BatchEmbeddings(*(gather(embedding.detach()).requires_grad_() for embedding in local))
    first = [ranks.rank * len(embedding) for embedding in local]
    rows = BatchEmbeddings(*(x[i : i + len(mine)] for x, i, mine in zip(columns, first, local, strict=True)))
    labels = Labels.of(batches).map(lambda tensor: tensor.to(ranks.device))
    losses = compared_losses(model, rows, columns, labels, labels.map(gather), first[0], weights.teaching)

    scalars = [scalar for scalar in scalar_parameters(model) if scalar.requires_grad]
    image, text, *by_scalar = torch.autograd.grad(
        losses.contrastive, [columns.image, columns.text, *scalars], retain_graph=weights.teaching is not None
    )
    for scalar, gradient in zip(scalars, by_scalar, strict=True):
        scalar.grad = weights.contrastive * ranks.sum(gradient)
    contrastive = CutLoss(losses.contrastive.detach(), scatter_sum(image), scatter_sum(text))
    if weights.teaching is None:
        return contrastive, CutLoss(losses.teacher)
    text, words = torch.autograd.grad(losses.teacher, [columns.text, columns.words])
    return contrastive, CutLoss(losses.teacher.detach(), None, scatter_sum(text), scatter_sum(words))


def _comparisons(
    model: ParallelModel, micro_batches: Sequence[Batch], weights: LossWeights, precision: AbstractContextManager
) -> list[Compare]:
    """For each micro-batch, a function from its embeddings to its part of the losses that compare."""

    def cut_at(local: BatchEmbeddings) -> tuple[CutLoss, CutLoss]:
        return cut_losses(model.raw, local, micro_batches, weights, model.ranks)

    if len(micro_batches) == 1:
        return [lambda embedded: _compare_by(*cut_at(embedded))(embedded)]
    with precision:
        parts = [model.embed(batch.to(model.ranks.device)) for batch in micro_batches]
    losses = cut_at(BatchEmbeddings(*(torch.cat(column) for column in zip(*parts, strict=True))))
    sizes = [[len(part.image) for part in parts], [len(part.words) for part in parts]]
    return [_compare_by(*cut) for cut in zip(*(loss.split(*sizes) for loss in losses), strict=True)]


def _compare_by(contrastive: CutLoss, teacher: CutLoss) -> Compare:
    return lambda embedded: ComparisonLosses(contrastive.at(embedded), teacher.at(embedded))


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
        if self.losses.teaching is not None:
            metrics["teacher"] = losses.teacher
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
    return Trainer(parallel, optimizers, recipe.loss_weights, autocast(recipe.precision, ranks.device), ema)


def count_tokens(batches: Sequence[Batch]) -> int:
    """Number of tokens to predict in these batches."""
    return sum(int(batch.predicts_token.sum()) for batch in batches)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context of a run's forward passes: bf16 autocast, or nothing. It can be entered again and again."""
    assert precision != "auto", "`decide` replaces it before"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
