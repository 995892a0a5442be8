"""Draws follow the softmax, filters keep what was worked out by hand, and chance has one source per caption."""

import numpy as np
import pytest

from grr_coca.common.errors import UserError
from grr_coca.infer.generate.captions import ArrayLogits, decode_independently, sample_next, uniform_draws
from grr_coca.infer.generate.options import GenerationOptions

PROBS = np.array([0.1, 0.4, 0.05, 0.25, 0.2])
LOG_PROBS = np.log(PROBS, dtype=np.float32)[None]
NUM_DRAWS = 20_000


def _frequencies(options: GenerationOptions) -> np.ndarray:
    uniforms = uniform_draws(0, ["x"], 1, NUM_DRAWS)[0]
    drawn = sample_next(ArrayLogits(LOG_PROBS.repeat(NUM_DRAWS, axis=0)), uniforms, options)
    return np.bincount(drawn, minlength=LOG_PROBS.shape[1]) / NUM_DRAWS


def _chi_square(frequencies: np.ndarray, probs: np.ndarray) -> float:
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
def test_samples_come_from_the_filtered_images(options, kept):
    expected = np.zeros(5)
    expected[kept] = PROBS[kept] / PROBS[kept].sum()
    statistic = _chi_square(_frequencies(GenerationOptions(temperature=1.0, **options)), expected)
    assert statistic < 18.5  # 4 degrees of freedom: exceeded once in a thousand


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature):
    expected = PROBS ** (1 / temperature)
    statistic = _chi_square(_frequencies(GenerationOptions(temperature=temperature)), expected / expected.sum())
    assert statistic < 18.5


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_nucleus_is_computed_after_the_temperature(temperature):
    expected = PROBS ** (1 / temperature)
    expected /= expected.sum()
    options = GenerationOptions(temperature=temperature, top_p=float(np.sort(expected)[-2:].sum()) - 1e-3)
    expected[np.argsort(expected)[:-2]] = 0
    assert _chi_square(_frequencies(options), expected / expected.sum()) < 18.5


@pytest.mark.parametrize(("options", "size"), [({"top_p": 0.6}, 338), ({"min_p": 0.3}, 529), ({"top_p": 0.999}, 1490)])
def test_filters_keep_rows_with_different_numbers_of_tokens(options, size):
    """More tokens than are searched at first. What a caption draws does not depend on its batch."""
    wide, peaked = np.random.default_rng(0).random(2000) ** 4, np.full(2000, 1e-9)
    wide /= wide.sum()
    peaked[7] = 1.0
    order = np.argsort(-wide)
    share = wide[order] / wide.max() >= options["min_p"] if "min_p" in options else None
    kept = order[share if share is not None else wide[order].cumsum() - wide[order] < options["top_p"]]
    assert len(kept) == size
    probs = wide[kept] / wide[kept].sum()
    uniforms = np.append((probs.cumsum() - probs / 2)[::9], 0.999)  # in the middle of each token's share
    rows = ArrayLogits(np.log(np.stack([wide] * (len(uniforms) - 1) + [peaked]), dtype=np.float32))
    drawn = sample_next(rows, uniforms, GenerationOptions(temperature=1.0, **options))
    assert drawn.tolist() == [*kept[::9].tolist(), 7]


def test_chance_depends_on_seed_key_and_draw_and_on_nothing_else():
    both = uniform_draws(7, ["a", "b"], 2, 9)
    assert both.dtype == np.float64
    assert ((both >= 0) & (both < 1)).all()
    assert np.array_equal(both[2:], uniform_draws(7, ["b"], 2, 9))
    assert np.array_equal(both[:, :4], uniform_draws(7, ["a", "b"], 2, 4))
    assert len({tuple(row) for row in [*both.tolist(), *uniform_draws(8, ["a", "b"], 2, 9).tolist()]}) == 8


def test_random_numbers_equal_those_of_earlier_releases():
    """The captions of a seed must not change with a version of NumPy."""
    (row,) = uniform_draws(3, ["cat.png"], 1, 3)
    assert row.tolist() == [0.48607116755216384, 0.3249542054388267, 0.5330418464889937]


class _Repeats:
    """A decoder that always gives the same logits, of which token 0 is the end."""

    def step(self, token_ids: np.ndarray) -> ArrayLogits:
        return ArrayLogits(np.zeros((len(token_ids), 2), dtype=np.float32))

    def reorder(self, rows: np.ndarray) -> None: ...


@pytest.mark.parametrize("way", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9, "min_p": 0.5}])
def test_rules_that_exclude_all_tokens_are_named(way):
    options = GenerationOptions(min_length=9, no_repeat_ngram=1, **way)
    uniforms = uniform_draws(0, ["x"], 1, 9) if way else None
    with pytest.raises(UserError, match="no_repeat_ngram"):
        list(decode_independently(_Repeats(), np.zeros((1, 1), dtype=np.int64), options, 9, 0, uniforms))
