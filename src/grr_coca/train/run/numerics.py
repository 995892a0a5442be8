"""The precisions of a run: what `auto` means on this machine, decided once and kept for the whole run."""

import timeit
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F

from grr_coca.model import CoCa
from grr_coca.train.recipe import Precision, Recipe
from grr_coca.train.step.muon import faster_precision
from grr_coca.train.step.optimizer import parameter_kinds

PROBE_TOKENS = 1024
GAIN = 1.5
"""How many times as fast products in bf16 must be for autocast to pay. Casts and copies around them use up small
gains."""


@dataclass(frozen=True)
class Numerics:
    """`precision` of forward and backward passes, and `muon_precision` of Muon's orthogonalization: `fp32` or `bf16`.

    With AdamW `muon_precision` stays `auto`, because there is nothing to decide.
    """

    precision: Precision
    muon_precision: Precision

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
        muon_precision = faster_precision(parameter_kinds(model).hidden, device)
    return Numerics(precision, muon_precision)


def faster_for_passes(width: int, device: torch.device) -> Precision:
    """bf16 if it makes forward and backward passes faster, else fp32.

    A CUDA card gains if it has products in bf16; older ones (V100, T4) imitate them. A CPU gains if a feed-forward
    product of the model's width gains.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _bf16_is_faster(width) else "fp32"


def _bf16_is_faster(width: int) -> bool:
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(PROBE_TOKENS, width, dtype=dtype), torch.randn(4 * width, width, dtype=dtype)
        seconds[dtype] = min(timeit.repeat(partial(F.linear, x, weight), number=1, repeat=5))
    return seconds[torch.bfloat16] < seconds[torch.float32] / GAIN
