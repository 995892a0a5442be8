"""The training step: from a batch to gradients to new weights."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from grr_coca.batch import IGNORE_INDEX, Batch
from grr_coca.checkpoint import Checkpoint
from grr_coca.evaluate.split import Scaling
from grr_coca.losses import LossWeights
from grr_coca.ranks import Ranks
from grr_coca.train.recipe import Precision, Recipe
from grr_coca.train.step.blocks import checkpoint_blocks, compile_blocks
from grr_coca.train.step.ema import Ema
from grr_coca.train.step.gradients import compute_gradients
from grr_coca.train.step.memory import keep_freed_memory
from grr_coca.train.step.optimizer import Optimizers, freeze
from grr_coca.train.step.parallel import ParallelModel


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
