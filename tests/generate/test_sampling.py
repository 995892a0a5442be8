"""Draws follow the softmax, filters keep what was worked out by hand, and chance has one source per caption."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grr_coca.generate.options import GenerationOptions
from grr_coca.generate.sampling import draw, inverse_cdf, keep_min_p, keep_top_p, largest, uniform_draws

PROBS = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
LOG_PROBS = PROBS.log()[None]
NUM_DRAWS = 20_000


def _frequencies(options: GenerationOptions, log_probs: torch.Tensor = LOG_PROBS) -> torch.Tensor:
    uniforms = uniform_draws(0, ["x"], 1, NUM_DRAWS)[0]
    drawn = draw(log_probs.expand(NUM_DRAWS, -1), uniforms, options)
    return torch.bincount(drawn, minlength=log_probs.shape[1]) / NUM_DRAWS


def _chi_square(frequencies: torch.Tensor, probs: torch.Tensor) -> float:
    possible = probs > 0
    assert frequencies[~possible].sum() == 0
    return float(NUM_DRAWS * ((frequencies - probs)[possible] ** 2 / probs[possible]).sum())


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.84}, [1, 3, 4]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"top_p": 1e-46}, [1]),
        ({"min_p": 0.5}, [1, 3, 4]),
        ({"min_p": 0.6}, [1, 3]),
        # Of the three likeliest, 0.4 / 0.85 is less than half and 0.65 / 0.85 more.
        ({"top_k": 3, "top_p": 0.5}, [1, 3]),
        ({"top_p": 0.84, "min_p": 0.6}, [1, 3]),
    ],
)
def test_draws_follow_what_the_filters_leave(options: dict, kept: list[int]) -> None:
    expected = torch.zeros(5)
    expected[kept] = PROBS[kept] / PROBS[kept].sum()
    statistic = _chi_square(_frequencies(GenerationOptions(temperature=1.0, **options)), expected)
    assert statistic < 18.5  # 4 degrees of freedom: exceeded once in a thousand


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    expected = (LOG_PROBS[0] / temperature).softmax(dim=-1)
    assert _chi_square(_frequencies(GenerationOptions(temperature=temperature)), expected) < 18.5


def test_a_narrow_nucleus_beside_a_wide_one_does_not_cut_it() -> None:
    """What a caption draws does not depend on its batch."""
    wide = torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0)).softmax(dim=-1).log()
    peaked = torch.full((1, 20_000), -30.0)
    peaked[0, 7] = 0.0
    alone, _ = keep_top_p(wide, 0.6)
    both, _ = keep_top_p(torch.cat([peaked, wide]), 0.6)
    assert both.isfinite().sum(dim=-1).tolist() == [1, int(alone.isfinite().sum())]


def test_a_nucleus_wider_than_the_first_look_is_found_whole() -> None:
    probs = torch.rand(3, 20_000, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    kept, ids = keep_top_p(probs.log(), 0.6)
    for row in range(3):
        ordered, order = probs[row].sort(descending=True)
        size = int((ordered.cumsum(0) < 0.6).sum()) + 1
        assert set(ids[row][kept[row].isfinite()].tolist()) == set(order[:size].tolist())


def test_min_p_is_relative_to_the_likeliest() -> None:
    kept = keep_min_p(torch.tensor([[0.0, math.log(0.3), math.log(0.29)]]), 0.2999)
    assert kept.isfinite().tolist() == [[True, True, False]]


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.4999, 1), (0.5001, 3), (1 - 2**-53, 3)])
def test_the_inverse_of_the_distribution_never_gives_what_is_impossible(uniform: float, token: int) -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    assert inverse_cdf(logits, torch.tensor([uniform], dtype=torch.float64)).item() == token


def test_every_device_draws_the_same() -> None:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        pytest.skip("the CPU is the only device here")
    options, uniforms = GenerationOptions(temperature=1.0, top_k=4), uniform_draws(0, ["x"], 1, 99)[0]
    log_probs = LOG_PROBS.expand(99, -1)
    assert draw(log_probs.to(accelerator), uniforms, options).tolist() == draw(log_probs, uniforms, options).tolist()


def test_chance_depends_on_seed_key_and_draw_and_on_nothing_else() -> None:
    both = uniform_draws(7, ["a", "b"], 2, 9)
    assert both.dtype == torch.float64
    assert torch.equal(both[2:], uniform_draws(7, ["b"], 2, 9))
    assert torch.equal(both[:, :4], uniform_draws(7, ["a", "b"], 2, 4))
    assert len({tuple(row) for row in [*both.tolist(), *uniform_draws(8, ["a", "b"], 2, 9).tolist()]}) == 8


@given(num=st.integers(1, 9000), k=st.integers(1, 70), seed=st.integers(0, 99), levels=st.sampled_from([3, 10**6]))
def test_the_largest_are_those_of_topk(num: int, k: int, seed: int, levels: int) -> None:
    values = torch.randint(0, levels, (2, num), generator=torch.Generator().manual_seed(seed)).float()
    found, where = largest(values, min(k, num))
    assert torch.equal(found, values.topk(min(k, num)).values)
    assert torch.equal(values.gather(1, where), found)
    assert all(len(set(row)) == len(row) for row in where.tolist())
