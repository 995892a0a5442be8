"""How a run computes: what `auto` means on this machine, decided once and kept for the whole of a run."""

import timeit
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F

from grr_coca.model import CoCa
from grr_coca.train.recipe import Precision, Recipe
from grr_coca.train.step.muon import faster_precision
from grr_coca.train.step.optimizer import parameter_groups

PROBE_TOKENS = 1024
GAIN = 1.5
"""How much faster products in bf16 must be for autocast: casts and copies around each of them eat small gains."""


@dataclass(frozen=True)
class Numerics:
    """`precision`: of forward and backward passes; `muon_precision`: of Muon's orthogonalization. `fp32` or `bf16`.

    With AdamW `muon_precision` stays `auto`: there is nothing to decide.
    """

    precision: Precision
    muon_precision: Precision

    def for_autos_of(self, recipe: Recipe) -> Recipe:
        """The recipe with this in place of every `auto`; what it names stays."""
        optimizer = recipe.optimizer
        if optimizer.muon_precision == "auto":
            recipe = replace(recipe, optimizer=replace(optimizer, muon_precision=self.muon_precision))
        return replace(recipe, precision=self.precision) if recipe.precision == "auto" else recipe


UNDECIDED = Numerics("auto", "auto")


def decide(recipe: Recipe, model: CoCa, device: torch.device) -> Numerics:
    """What the recipe asks for; where it says `auto`, what is faster on this machine, measured here and now.

    Args:
        recipe: the run.
        model: its model, for the shapes of its matrices.
        device: where it computes.
    """
    precision, muon_precision = recipe.precision, recipe.optimizer.muon_precision
    if precision == "auto":
        precision = faster_for_passes(model.image_encoder.patch_embed.out_features, device)
    if muon_precision == "auto" and recipe.optimizer.name == "muon":
        muon_precision = faster_precision(parameter_groups(model)[0], device)
    return Numerics(precision, muon_precision)


def faster_for_passes(width: int, device: torch.device) -> Precision:
    """bf16 where forward and backward passes gain from it, else fp32.

    CUDA cards that have bf16 gain; a CPU gains when one feed-forward product of the model's width does.
    """
    gains = torch.cuda.is_bf16_supported() if device.type == "cuda" else _bf16_is_faster(width)
    return "bf16" if gains else "fp32"


def _bf16_is_faster(width: int) -> bool:
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(PROBE_TOKENS, width, dtype=dtype), torch.randn(4 * width, width, dtype=dtype)
        seconds[dtype] = min(timeit.repeat(partial(F.linear, x, weight), number=1, repeat=5))
    return seconds[torch.bfloat16] < seconds[torch.float32] / GAIN
