"""Main effects and interactions of a two-level factorial, with the seed as block."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from grr_coca.study.statistics.paired import Samples

Cell = frozenset[str]
"""A corner of the factorial: the parts that its arm has."""
ROUNDING = 1e-12
"""An effect that is smaller than this share of the largest value is none."""


def factorial_effects(cells: Mapping[Cell, Samples]) -> dict[tuple[str, ...], Samples]:
    """The effect of each part and each set of parts, seed by seed: as many as there are corners, less one.

    An effect is the mean of the corners in which the signs of its parts multiply to plus, less the mean of the others
    (Yates, The Design and Analysis of Factorial Experiments, 1937; Montgomery, Design and Analysis of Experiments,
    chapter 6). A main effect is thus what a part changes on average over all combinations of the others; an interaction
    of two is half of how much more one changes with the other than without. Of three parts A, B and C, the main
    effects and the interaction of all three add up to the corner with all parts less the corner with none.

    A seed is a block: what it adds to all of its corners cancels. Each effect has its own values over seeds, and so its
    own error; nothing is assumed of how the effects of one seed hang together.

    Args:
        cells: values of every corner (log of a metric), seeds in the same order.

    Returns:
        Effects by the names of their parts, main effects first.
    """
    parts = [part for cell in cells if len(cell) == 1 for part in cell]  # in the order in which they are given
    assert len(cells) == 2 ** len(parts), "every corner is needed"
    half = len(cells) / 2
    rounding = ROUNDING * max(float(np.abs(values).max(initial=0.0)) for values in cells.values())
    effects = {
        chosen: np.sum([_sign(chosen, cell) * values for cell, values in cells.items()], axis=0) / half
        for size in range(1, len(parts) + 1)
        for chosen in combinations(parts, size)
    }
    # What rounding leaves of corners that are equal may be the same with every seed, and would be a sure finding.
    return {chosen: np.where(np.abs(values) <= rounding, 0.0, values) for chosen, values in effects.items()}


def _sign(chosen: tuple[str, ...], cell: Cell) -> int:
    """Product over the chosen parts of +1 where the corner has the part and −1 where not."""
    missing = sum(part not in cell for part in chosen)
    return -1 if missing % 2 else 1
