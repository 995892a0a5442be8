"""The precisions of a run. `auto` is decided once, by timing fp32 and bf16 on this machine, for the whole run."""

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
"""Autocast to bf16 pays if products in bf16 are this many times as fast. Its casts and copies use up smaller gains."""
TENSOR_CORES = (7, 0)
"""Compute capability of the first CUDA cards with fast products in fp16."""
MIN_MUON_GAIN = 1.1
"""Muon takes bf16 if it is this many times as fast. If both are about equally fast, noise must not decide."""


@dataclass(frozen=True)
class Numerics:
    """`precision` of forward and backward passes: `fp32`, `bf16` or `fp16`; and `muon_precision` of Muon's
    orthogonalization: `fp32` or `bf16`.

    With AdamW `muon_precision` stays `auto`, because there is nothing to decide.
    """

    precision: Precision
    muon_precision: MuonPrecision

    def for_autos_of(self, recipe: Recipe) -> Recipe:
        """The recipe with these precisions instead of `auto`. A precision that the recipe names stays."""
        optimizer = recipe.optimizer
        if optimizer.muon_precision == "auto":
            recipe = replace(recipe, optimizer=replace(optimizer, muon_precision=self.muon_precision))
        return replace(recipe, precision=self.precision) if recipe.precision == "auto" else recipe


def decide(recipe: Recipe, model: CoCa, device: torch.device) -> Numerics:
    """The precisions of a recipe. For `auto`, both precisions are timed now, and the faster one is taken.

    Args:
        recipe: the recipe of the run.
        model: the model of the run, for the shapes of its matrices.
        device: the device of the run.
    """
    precision, muon_precision = recipe.precision, recipe.optimizer.muon_precision
    if precision == "auto":
        precision = faster_for_passes(model.image_encoder.patch_embed.out_features, device)
    if muon_precision == "auto" and recipe.optimizer.name == "muon":
        muon_precision = faster_for_muon(parameter_kinds(model).hidden, device)
    return Numerics(precision, muon_precision)


def faster_for_passes(width: int, device: torch.device) -> Precision:
    """The precision in which forward and backward passes are fastest.

    A CUDA card gains if it has products in bf16. Older ones (V100, T4) emulate them, but have fast products in fp16. A
    CPU gains by bf16 if a feed-forward product of the model's width gains.
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
    """Measure in which precision this machine orthogonalizes matrices of these shapes faster."""
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
