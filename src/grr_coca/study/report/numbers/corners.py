"""Which arms of a study are the corners of a factorial, and of which parts."""

from itertools import chain, combinations

from grr_coca.study.plan.plan import Plan, arm_named
from grr_coca.study.statistics.factorial import Cell

PARTS = ("RMSNorm", "GEGLU", "RoPE")
PARTS_OF_PRESET: dict[str, Cell] = {
    "baseline_coca": frozenset(),
    "baseline_rms": frozenset({"RMSNorm"}),
    "baseline_geglu": frozenset({"GEGLU"}),
    "baseline_rope_2d": frozenset({"RoPE"}),
    "baseline_rms_geglu": frozenset({"RMSNorm", "GEGLU"}),
    "baseline_rms_rope_2d": frozenset({"RMSNorm", "RoPE"}),
    "baseline_geglu_rope_2d": frozenset({"GEGLU", "RoPE"}),
    "grr_coca": frozenset(PARTS),
}
"""What the image encoder of a preset has of GRR-CoCa's three parts, and nothing else that is not Baseline CoCa's."""


def factorial_corners(plan: Plan) -> dict[Cell, str]:
    """Arms by the factors that they have, if arms of the plan make a full factorial of two factors or more.

    A factor is a part, or several parts that these arms have together: Baseline CoCa, GRR-CoCa, RoPE alone and all but
    RoPE are the corners of the factors `RMSNorm + GEGLU` and `RoPE`. Only arms count that are
    trained as the baseline is.

    Returns:
        The corner without any factor first, then those with one; empty if there is no factorial.
    """
    baseline = arm_named(plan, plan.baseline)
    arms = [arm for arm in plan.arms if arm.preset_name in PARTS_OF_PRESET and arm.variant is None]
    arms = [arm for arm in arms if (arm.overrides, arm.recipes) == (baseline.overrides, baseline.recipes)]
    arm_of = {PARTS_OF_PRESET[arm.preset_name]: arm.name for arm in arms}
    factors = [cell for cell in arm_of if cell and not any(other and other < cell for other in arm_of)]
    factors.sort(key=lambda cell: min(map(PARTS.index, cell)))
    corners = list(chain.from_iterable(combinations(factors, size) for size in range(len(factors) + 1)))
    unions = [frozenset(chain.from_iterable(corner)) for corner in corners]
    are_apart = len(frozenset(chain.from_iterable(factors))) == sum(map(len, factors))
    if len(factors) < 2 or not are_apart or not arm_of.keys() >= set(unions):
        return {}
    return {frozenset(map(_name, corner)): arm_of[union] for corner, union in zip(corners, unions, strict=True)}


def _name(factor: Cell) -> str:
    return " + ".join(sorted(factor, key=PARTS.index))
