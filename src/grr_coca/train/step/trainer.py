"""The training step: batch to gradients to new weights."""

import math
import timeit
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from grr_coca.batch import IGNORE_INDEX, Batch
from grr_coca.losses import LossWeights
from grr_coca.train.recipe import Precision
from grr_coca.train.step.ema import Ema
from grr_coca.train.step.gradients import compute_gradients
from grr_coca.train.step.optimizer import Optimizers
from grr_coca.train.step.parallel import ParallelModel

PROBE_TOKENS = 1024


@dataclass(frozen=True)
class Trainer:
    """All that a training step needs besides its batch."""

    model: ParallelModel
    optimizers: Optimizers
    losses: LossWeights
    precision: AbstractContextManager
    ema: Ema | None

    def step(self, micro_batches: Sequence[Batch], num_tokens: int, step: int) -> dict[str, float]:
        """Forward, backward, update; the same numbers come out on every rank.

        A loss or gradient that is not finite leaves the weights and the optimizer as they are, on every rank alike.

        Args:
            micro_batches: this rank's share of the global batch.
            num_tokens: tokens to predict in the global batch.
            step: counted from 0.
        """
        losses = compute_gradients(self.model, micro_batches, num_tokens, self.losses, self.precision)
        grad_norm = self.optimizers.clip()
        metrics = {**losses._asdict(), "grad_norm": grad_norm}
        values = torch.stack([value.double() for value in metrics.values()]).tolist()  # waits for the device, once
        if all(map(math.isfinite, values)):
            self.optimizers.update(step)
            self.model.raw.clamp_logit_scale()
            if self.ema is not None:
                self.ema.update()
        self.optimizers.zero_grad()
        return {**dict(zip(metrics, values, strict=True)), "lr": self.optimizers.learning_rate(step)}

    def averaged(self) -> AbstractContextManager:
        """The model as it is evaluated and kept: with its running average for weights, where there is one."""
        return nullcontext() if self.ema is None else self.ema.applied()


def count_tokens(batches: Sequence[Batch]) -> int:
    """Tokens to predict in some batches."""
    return sum(int((batch.labels != IGNORE_INDEX).sum()) for batch in batches)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context of a run's forward passes: bf16 autocast, or nothing. Enter it as often as you like."""
    assert precision != "auto", "resolve_precision comes first"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def resolve_precision(precision: Precision, device: torch.device, width: int) -> Precision:
    """What `auto` means on this machine: bf16 where it gains from that, else fp32.

    CUDA cards that have bf16 gain; a CPU gains when one feed-forward product of the model's width is faster in
    bf16 than in fp32, measured here and now.
    """
    if precision != "auto":
        return precision
    gains = torch.cuda.is_bf16_supported() if device.type == "cuda" else _bf16_is_faster(width)
    return "bf16" if gains else "fp32"


def _bf16_is_faster(width: int) -> bool:
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(PROBE_TOKENS, width, dtype=dtype), torch.randn(4 * width, width, dtype=dtype)
        seconds[dtype] = min(timeit.repeat(partial(F.linear, x, weight), number=1, repeat=5))
    # Casts and copies around each product eat small gains.
    return seconds[torch.bfloat16] < seconds[torch.float32] / 1.5
