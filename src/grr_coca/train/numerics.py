"""Precisions of a run. `auto` is resolved once per run, by timing fp32 and bf16 on this machine."""

import timeit
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grr_coca.model.coca import CoCa
from grr_coca.train.muon import DTYPES, newton_schulz_step
from grr_coca.train.optimizer import parameter_kinds
from grr_coca.train.recipe import MuonPrecision, Precision, Recipe

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

    def for_autos_of(self, recipe: Recipe) -> Recipe:
        """Replace each `auto` in a recipe by these precisions. Explicit precisions are kept."""
        optimizer = recipe.optimizer
        if optimizer.muon_precision == "auto":
            recipe = replace(recipe, optimizer=replace(optimizer, muon_precision=self.muon_precision))
        return replace(recipe, precision=self.precision) if recipe.precision == "auto" else recipe


def resolve_precision(recipe: Recipe, model: CoCa, device: torch.device) -> Numerics:
    """Resolve the precisions of a recipe. `auto` is replaced by the faster precision on the device.

    Args:
        recipe: Recipe of the run.
        model: Model of the run, for the shapes of its matrices.
        device: Device of the run.
    """
    precision, muon_precision = recipe.precision, recipe.optimizer.muon_precision
    if precision == "auto":
        precision = faster_for_passes(model.image_sides[0].width, device)
    if muon_precision == "auto" and recipe.optimizer.name == "muon":
        muon_precision = faster_for_muon(parameter_kinds(model).hidden, device)
    return Numerics(precision, muon_precision)


def faster_for_passes(width: int, device: torch.device) -> Precision:
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


def faster_for_muon(matrices: Iterable[nn.Parameter], device: torch.device) -> MuonPrecision:
    """Return the faster precision for orthogonalizing matrices of the given shapes, measured on this machine."""
    seconds = dict.fromkeys(DTYPES, 0.0)
    for (short, long), count in Counter(tuple(sorted(matrix.shape)) for matrix in matrices).items():
        for precision, dtype in DTYPES.items():
            x = torch.full((short, long), (short * long) ** -0.5, dtype=dtype, device=device)
            seconds[precision] += count * min(timeit.repeat(partial(_timed_step, x), number=1, repeat=4))
    return "bf16" if seconds["bf16"] < seconds["fp32"] / MIN_MUON_GAIN else "fp32"


def _timed_step(x: Tensor) -> None:
    newton_schulz_step(x)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
