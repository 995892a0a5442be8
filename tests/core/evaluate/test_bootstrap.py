"""Intervals against theory, against a plain loop, and of corpus metrics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grr_coca.common.errors import UserError
from grr_coca.evaluate import intervals as bootstrap
from grr_coca.evaluate.caption_metrics import score_captions
from grr_coca.evaluate.intervals import Measure, draw_resamples, sum_by_image

RNG = np.random.default_rng(0)


def test_interval_of_a_mean_matches_its_standard_error():
    values = RNG.normal(3.0, 2.0, size=1000)
    interval = Measure.mean(values).interval(4000)
    error = values.std() / np.sqrt(len(values))
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_ninety_five_in_a_hundred_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    held = [
        interval.low <= 0.3 <= interval.high
        for interval in (Measure.mean(rng.random(200) < 0.3).interval(400, seed) for seed in range(200))
    ]
    assert 0.90 <= np.mean(held) <= 0.99


def test_corpus_metric_matches_a_loop_over_resamples():
    hypotheses = ["a red cat sits", "the dog runs far away", "two birds", "a small house"]
    references = [["a red cat sat"], ["the dog runs away", "a dog"], ["three birds fly"], ["a big house", "a house"]]
    scores = score_captions(hypotheses, references)
    measure = scores.measures()["BLEU-2"]
    resampled = []
    for counts in np.concatenate(list(draw_resamples(4, 50, seed=3))):
        chosen = np.repeat(np.arange(4), counts.astype(int))
        again = score_captions([hypotheses[i] for i in chosen], [references[i] for i in chosen])
        resampled.append(again.corpus()["BLEU-2"])
    interval = measure.interval(50, seed=3)
    assert interval.low == pytest.approx(np.quantile(resampled, 0.025))
    assert interval.high == pytest.approx(np.quantile(resampled, 0.975))


def test_ratio_is_of_sums_and_not_the_mean_of_ratios():
    measure = Measure.ratio(np.array([1.0, 9.0]), np.array([1.0, 3.0]))
    assert measure.value() == 2.5


def test_pairing_cancels_variation_shared_by_images():
    difficulty = RNG.normal(0, 10, size=500)
    better, worse = Measure.mean(difficulty + 1), Measure.mean(difficulty + RNG.normal(0, 0.1, size=500))
    paired = better.difference(worse)
    assert paired.value == pytest.approx(1.0, abs=0.05)
    assert paired.high - paired.low < 0.1
    assert paired.low > 0
    alone = better.interval()
    assert alone.high - alone.low > 1


def test_other_images_cannot_be_paired():
    with pytest.raises(UserError, match="3 and 4"):
        Measure.mean(np.ones(3)).difference(Measure.mean(np.ones(4)))


@pytest.mark.parametrize("at_once", [1, 13, 10**6])
def test_memory_does_not_change_the_draws(monkeypatch, at_once):
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", at_once)
    counts = np.concatenate(list(draw_resamples(7, 20, seed=0)))
    assert counts.shape == (20, 7)
    assert (counts.sum(axis=1) == 7).all()
    if at_once != 1:
        monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 1)
    assert np.array_equal(counts, np.concatenate(list(draw_resamples(7, 20, seed=0))))


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-5, 5)), min_size=1, max_size=20))
def test_values_of_one_image_are_summed(rows):
    ids, values = (np.array(column) for column in zip(*rows, strict=True))
    expected = [sum(v for i, v in rows if i == image) for image in sorted(set(ids.tolist()))]
    assert sum_by_image(values, ids) == pytest.approx(expected)
