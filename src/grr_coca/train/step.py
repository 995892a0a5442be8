"""Training step: from a batch to gradients, and from gradients to new weights, in the precisions of the run.

The gradients are exactly those of CoCa's loss over the global batch, on any number of ranks. Each rank runs the model
on its own pairs, compares them with the pairs of all ranks, and differentiates its part of the loss
(`grr_coca.model.losses.batch_loss`). `grr_coca.train.micro_batches` does the same with less memory.
"""

import ctypes
import math
import sys
import timeit
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import Batch
from grr_coca.evaluate.split import Scaling
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.coca import CoCa, require_exact_products
from grr_coca.model.losses import Losses, LossWeights, batch_loss
from grr_coca.train.blocks import checkpoint_blocks, compile_blocks
from grr_coca.train.micro_batches import accumulate_gradients
from grr_coca.train.muon import DTYPES, newton_schulz_step
from grr_coca.train.optimizer import Ema, Optimizers, freeze, parameter_kinds
from grr_coca.train.parallel import ParallelModel
from grr_coca.train.recipe import MuonPrecision, Precision, Recipe

AUTOCAST_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def compute_gradients(
    model: ParallelModel,
    micro_batches: Sequence[Batch],
    num_tokens: int,
    weights: LossWeights,
    precision: AbstractContextManager,
    scale: float = 1.0,
) -> Losses:
    """Compute the gradients of the global batch's loss, and return its losses, detached from the graph.

    The gradients of the parameters must be cleared before this call.

    Args:
        model: The model on all ranks.
        micro_batches: This rank's part of the batch. All ranks have the same numbers of pairs and micro-batches.
        num_tokens: Number of tokens to predict in the global batch.
        weights: Weights of the losses.
        precision: Context of the forward passes.
        scale: Factor by which all gradients, but not the returned losses, are multiplied.
    """
    ranks = model.ranks
    if len(micro_batches) > 1:
        losses = accumulate_gradients(model, micro_batches, num_tokens, weights, precision, scale)
    else:
        batch = micro_batches[0].to(ranks.device)
        with precision:
            losses = model(lambda coca: batch_loss(coca, batch, weights, num_tokens=num_tokens, ranks=ranks))
        # Gradients are averaged over the ranks, but their sum is needed.
        (scale * ranks.size * losses.total).backward()
    model.average_scalar_gradients()
    return Losses(*ranks.sum(torch.stack(losses).detach()))


@dataclass
class LossScale:
    """Factor by which gradients in fp16 are multiplied. Positive values in fp16 range from 6e-8 to 65,504.

    If a gradient of a step is not finite, the step is skipped, and the factor is halved. After `GROWTH_INTERVAL` finite
    steps in a row, the factor is doubled (Micikevicius et al., arXiv 1710.03740, section 3.2). All ranks act
    identically, because they have the same gradient norm.
    """

    GROWTH_INTERVAL: ClassVar[int] = 2000

    factor: float = 2.0**16
    finite_steps: int = 0

    def update(self, is_finite: bool) -> None:
        """Update the factor after a step. `is_finite` is False if the step was skipped."""
        self.finite_steps = self.finite_steps + 1 if is_finite else 0
        if not is_finite:
            self.factor /= 2
        elif self.finite_steps == self.GROWTH_INTERVAL:
            self.factor, self.finite_steps = self.factor * 2, 0


@dataclass(frozen=True)
class Trainer:
    """All inputs of a training step except its batch.

    Attributes:
        model: The model on all ranks.
        optimizers: The optimizers, with the learning-rate schedule.
        losses: Weights of the losses.
        precision: Context of the forward passes.
        ema: Running average of the weights. None if the recipe has no average.
        loss_scale: Factor of the loss. None unless the precision is fp16.
    """

    model: ParallelModel
    optimizers: Optimizers
    losses: LossWeights
    precision: AbstractContextManager
    ema: Ema | None
    _: KW_ONLY
    loss_scale: LossScale | None = None

    def step(self, micro_batches: Sequence[Batch], num_tokens: int, step: int) -> dict[str, float]:
        """Run the forward pass, the backward pass and the update, and return the step's metrics.

        All ranks must call this method, and get the same metrics. If the loss or a gradient is not finite, the weights
        and the state of the optimizer stay unchanged on all ranks.

        Args:
            micro_batches: This rank's part of the global batch.
            num_tokens: Number of tokens to predict in the global batch.
            step: Number of the step, counted from 0.
        """
        scale = 1.0 if self.loss_scale is None else self.loss_scale.factor
        losses = compute_gradients(self.model, micro_batches, num_tokens, self.losses, self.precision, scale)
        if self.loss_scale is not None:
            self.optimizers.divide_gradients(scale)
        grad_norm = self.optimizers.gradient_norm()
        metrics = {
            "contrastive": losses.contrastive,
            "captioning": losses.captioning,
            "coca": losses.coca,
            "z": losses.z,
            "grad_norm": grad_norm,
        }
        if self.losses.teacher:
            metrics["teacher"] = losses.teacher
        if self.losses.sibling:
            metrics["sibling"] = losses.sibling
        # This is the only point of a step that synchronizes with the device.
        numbers = dict(zip(metrics, torch.stack([value.double() for value in metrics.values()]).tolist(), strict=True))
        is_finite = all(map(math.isfinite, numbers.values()))
        if self.loss_scale is not None:
            self.loss_scale.update(is_finite)
        if is_finite:
            self.optimizers.clip(grad_norm, numbers["grad_norm"])
            self.optimizers.update(step)
            self.model.raw.clamp_logit_scale()
            if self.ema is not None:
                self.ema.update()
        else:
            self.optimizers.zero_grad()
        return {**numbers, "lr": self.optimizers.learning_rate(step)}

    @torch.no_grad()
    def set_scaling(self, scaling: Scaling) -> None:
        """Set the temperature and, if `scaling` has one, the bias of the model and of the average of its weights."""
        for name, value in scaling._asdict().items():
            if value is not None:
                getattr(self.model.raw, name).copy_(value)
                if self.ema is not None:
                    self.ema.set(name, value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Replace the model's weights by their running average, if there is one, within a context.

        Models are evaluated and saved in this context.
        """
        if self.ema is None:
            yield
            return
        try:
            with self.ema.use_average():
                self.model.discard_gathered_weights()
                yield
        finally:
            self.model.discard_gathered_weights()


def build_trainer(recipe: Recipe, start: Checkpoint, ranks: Ranks) -> Trainer:
    """Create the trainer of a checkpoint's model, which is copied to the ranks or sharded over them.

    The model of `start` is changed in place: moved to the device, frozen, compiled and sharded as the recipe requests.
    Its precisions must not be `auto`.

    Raises:
        UserError: If `freeze` or `learning_rates` does not match the model, or a C++ compiler is needed but missing.
    """
    if ranks.device.type == "cpu":
        keep_freed_memory()
    else:
        require_exact_products()
    model = start.model.to(ranks.device).train()
    freeze(model, recipe.freeze, recipe.optimizer.learning_rates)
    if recipe.compile:
        compile_blocks(model, recipe.gradient_checkpointing)
    elif recipe.gradient_checkpointing:
        checkpoint_blocks(model)
    parallel = ParallelModel(model, recipe.parallelism, ranks)
    # The optimizers are created after the model is sharded, so that a parameter's state is sharded like the parameter.
    optimizers = Optimizers(model, recipe.optimizer, recipe.schedule)
    ema = None if recipe.ema is None else Ema(model, recipe.ema)
    precision = autocast(recipe.precision, ranks.device)
    loss_scale = LossScale() if recipe.precision == "fp16" else None
    return Trainer(parallel, optimizers, recipe.loss_weights, precision, ema, loss_scale=loss_scale)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of these two options in glibc's `malloc.h`."""


def keep_freed_memory() -> None:
    """Make glibc's allocator keep freed memory, for the rest of the process. Other allocators are not affected.

    By default, glibc returns the memory of each large tensor to the system, which then fills the pages of the next
    tensor with zeros. At every step, this would happen for all activations and gradients. The measured cost is in
    `benchmarks/LOG.md`.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries do not have this function
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never return memory


def count_tokens(batches: Sequence[Batch]) -> int:
    """Return the number of tokens to predict in the given batches, without those of other ranks."""
    return sum(len(batch.next_tokens) for batch in batches)


# --- Precisions: `auto` is resolved once per run, by timing fp32 and bf16 on this machine

PROBE_TOKENS = 1024
MIN_AUTOCAST_GAIN = 1.5
"""Minimum speed-up of matrix products for which autocast to bf16 is used. Its casts and copies would offset a smaller
gain."""
TENSOR_CORES = (7, 0)
"""Compute capability of the first CUDA GPUs with fast products in fp16."""
MIN_MUON_GAIN = 1.1
"""Minimum speed-up for which Muon uses bf16, so that noise does not decide between equally fast precisions."""


@dataclass(frozen=True)
class Numerics:
    """Precisions of a run.

    `precision` of the forward and backward passes is `fp32`, `bf16` or `fp16`. `muon_precision` of Muon's
    orthogonalization is `fp32` or `bf16`; with AdamW, it stays `auto`, because it is not used.
    """

    precision: Precision
    muon_precision: MuonPrecision

    def resolve_autos(self, recipe: Recipe) -> Recipe:
        """Replace each `auto` in a recipe by these precisions. Explicit precisions are kept."""
        optimizer = recipe.optimizer
        if optimizer.muon_precision == "auto":
            recipe = replace(recipe, optimizer=replace(optimizer, muon_precision=self.muon_precision))
        return replace(recipe, precision=self.precision) if recipe.precision == "auto" else recipe


def resolve_precision(recipe: Recipe, model: CoCa, device: torch.device) -> Numerics:
    """Return the precisions of a recipe, with each `auto` replaced by the faster precision on the device.

    On a CPU, products are timed. The precision of Muon stays `auto` if Muon is not used.

    Args:
        recipe: Recipe of the run.
        model: Model of the run, for the shapes of its matrices.
        device: Device of the run.
    """
    precision, muon_precision = recipe.precision, recipe.optimizer.muon_precision
    if precision == "auto":
        precision = faster_pass_precision(model.pooled_encoders[0].width, device)
    if muon_precision == "auto" and recipe.optimizer.name == "muon":
        muon_precision = faster_muon_precision(parameter_kinds(model).hidden, device)
    return Numerics(precision, muon_precision)


def faster_pass_precision(width: int, device: torch.device) -> Precision:
    """Return the precision with the fastest forward and backward passes.

    A CUDA GPU that supports bf16 products is faster in bf16. Older GPUs (V100, T4) only emulate bf16, but have fast
    products in fp16. A CPU uses bf16 if a feed-forward product of the model's width is faster in bf16.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        return "fp16" if torch.cuda.get_device_capability(device) >= TENSOR_CORES else "fp32"
    return "bf16" if _bf16_is_faster(width) else "fp32"


def _bf16_is_faster(width: int) -> bool:
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(PROBE_TOKENS, width, dtype=dtype), torch.randn(4 * width, width, dtype=dtype)
        seconds[dtype] = min(timeit.repeat(partial(F.linear, x, weight), number=1, repeat=5))
    return seconds[torch.bfloat16] < seconds[torch.float32] / MIN_AUTOCAST_GAIN


def faster_muon_precision(matrices: Iterable[nn.Parameter], device: torch.device) -> MuonPrecision:
    """Return the faster precision for orthogonalizing matrices of the given shapes, measured on this machine."""
    seconds = dict.fromkeys(DTYPES, 0.0)
    for (short, long), count in Counter(tuple(sorted(matrix.shape)) for matrix in matrices).items():
        for precision, dtype in DTYPES.items():
            x = torch.full((short, long), (short * long) ** -0.5, dtype=dtype, device=device)
            seconds[precision] += count * min(timeit.repeat(partial(_run_timed_step, x), number=1, repeat=4))
    return "bf16" if seconds["bf16"] < seconds["fp32"] / MIN_MUON_GAIN else "fp32"


def _run_timed_step(x: Tensor) -> None:
    newton_schulz_step(x)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """Return the context of a run's forward passes: autocast to half precision, or a null context.

    The context can be entered repeatedly.
    """
    assert precision != "auto", "`resolve_precision` has replaced it"
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, AUTOCAST_DTYPES[precision])
