"""Effects of a factorial against least squares, and on simulated studies whose truth is known."""

from itertools import chain, combinations

import numpy as np
import pytest

from grr_coca.study.statistics import factorial_effects, t_interval

PARTS = ("RMSNorm", "GEGLU", "RoPE")
CORNERS = [frozenset(c) for c in chain.from_iterable(combinations(PARTS, size) for size in range(4))]


def cells(seeds: int, studies: int = 1, **effects: float) -> dict[frozenset[str], np.ndarray]:
    """Corners of simulated studies in which parts, and pairs joined by `_`, add so much; seeds differ widely."""
    rng = np.random.default_rng(2)
    block = rng.normal(0, 1.0, size=(studies, seeds))
    return {
        corner: block
        + rng.normal(0, 0.01, size=block.shape)
        + sum(size for names, size in effects.items() if corner >= set(names.split("_")))
        for corner in CORNERS
    }


def test_effects_of_two_parts_worked_out_by_hand():
    made = {frozenset(): 10.0, frozenset("A"): 12.0, frozenset("B"): 13.0, frozenset("AB"): 19.0}
    effects = factorial_effects({corner: np.array([value]) for corner, value in made.items()})
    assert {name: values.item() for name, values in effects.items()} == {("A",): 4.0, ("B",): 5.0, ("A", "B"): 2.0}


def test_there_are_seven_effects_of_three_parts_main_effects_first():
    names = list(factorial_effects(cells(4)))
    assert names[:3] == [(part,) for part in PARTS]
    assert names[3:] == [PARTS[:2], PARTS[::2], PARTS[1:], PARTS]


def test_parts_that_change_nothing_at_all_have_no_effect_and_not_what_rounding_leaves():
    """What it leaves may be the same with every seed, and so as sure as can be."""
    random = np.random.default_rng(0)
    for _ in range(50):
        values = {with_first: random.uniform(0.5, 3, 4) for with_first in (False, True)}
        effects = factorial_effects({corner: values[PARTS[0] in corner] for corner in CORNERS})
        assert np.allclose(effects.pop(PARTS[:1]), values[True] - values[False])
        assert all((found == 0).all() for found in effects.values())


def test_effects_are_those_of_least_squares_with_a_column_for_each_seed():
    made, seeds = cells(5, RMSNorm=-0.01, GEGLU=-0.03, RMSNorm_RoPE=0.02), 5
    rows, targets = [], []
    names = list(factorial_effects(made))
    for corner, values in made.items():
        signs = [np.prod([1 if part in corner else -1 for part in name]) / 2 for name in names]
        for seed in range(seeds):
            rows.append([*signs, *np.eye(seeds)[seed]])
            targets.append(values[0, seed])
    fitted = np.linalg.lstsq(np.array(rows), np.array(targets))[0][: len(names)]
    assert [values.mean() for values in factorial_effects(made).values()] == pytest.approx(fitted.tolist())


def test_main_effects_and_the_interaction_of_all_add_up_to_the_whole():
    made = cells(6, RMSNorm=-0.01, GEGLU=-0.03, RoPE=0.01, RMSNorm_RoPE=0.02)
    effects = factorial_effects(made)
    whole = made[frozenset(PARTS)] - made[frozenset()]
    assert sum(effects[name] for name in [*((part,) for part in PARTS), PARTS]) == pytest.approx(whole)


def test_intervals_of_effects_cover_the_truth():
    made = cells(8, studies=2000, RMSNorm=-0.01, GEGLU=-0.03, RMSNorm_RoPE=0.02)
    truths = {("RMSNorm",): 0.0, ("GEGLU",): -0.03, ("RoPE",): 0.01, ("RMSNorm", "RoPE"): 0.01}
    for name, values in factorial_effects(made).items():
        low, high = t_interval(values)
        truth = truths.get(name, 0.0)
        assert 0.93 <= np.mean((low <= truth) & (truth <= high)) <= 0.97, name


def test_a_missing_corner_is_a_mistake():
    with pytest.raises(AssertionError, match="every corner"):
        factorial_effects({corner: values for corner, values in cells(3).items() if len(corner) != 3})
