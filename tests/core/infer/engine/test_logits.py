"""The distribution of the next token, in an array and on a device, against the plainest formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grr_coca.infer.engine.base import Logits
from grr_coca.infer.engine.torch import DeviceLogits
from grr_coca.infer.generate.captions import ArrayLogits, inverse_cdf

ROWS, VOCAB = 3, 500
LOGITS = np.random.default_rng(0).normal(20, 4, (ROWS, VOCAB)).astype(np.float32)
LOG_PROBS = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=1, keepdims=True))
ALL = np.arange(VOCAB)[None].repeat(ROWS, axis=0)


def in_array(logits: np.ndarray) -> Logits:
    return ArrayLogits(logits)


def on_device(logits: np.ndarray) -> Logits:
    """On a GPU if there is one."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return DeviceLogits(torch.from_numpy(logits).to(device).log_softmax(dim=1))


everywhere = pytest.mark.parametrize("make", [in_array, on_device])


@everywhere
@pytest.mark.parametrize("k", [1, 2, 7, 300, VOCAB, 10**9])
def test_largest_come_in_order_with_their_log_probabilities(make, k):
    values, ids = make(LOGITS).largest(k)
    assert ids.tolist() == np.argsort(-LOGITS, axis=1)[:, :k].tolist()
    assert values == pytest.approx(np.take_along_axis(LOG_PROBS, ids, axis=1), abs=1e-5)


@given(num=st.integers(1, 9000), k=st.integers(1, 70), seed=st.integers(0, 99), levels=st.sampled_from([3, 10**6]))
def test_largest_of_many_numbers_equal_those_of_a_sort(num, k, seed, levels):
    logits = np.random.default_rng(seed).integers(0, levels, (2, num)).astype(np.float32)
    _, ids = ArrayLogits(logits).largest(k)
    assert np.array_equal(np.take_along_axis(logits, ids, axis=1), -np.sort(-logits, axis=1)[:, :k])
    assert all(len(set(row)) == len(row) for row in ids.tolist())


@everywhere
def test_log_probabilities_equal_the_log_softmax(make):
    assert make(LOGITS).log_probs_of(ALL) == pytest.approx(LOG_PROBS, abs=1e-5)


@everywhere
def test_replacing_log_probs_keeps_other_fields_and_the_original(make):
    logits = make(LOGITS)
    changed = logits.with_log_probs(np.array([0, 2]), np.array([5, 6]), np.array([-np.inf, -0.25], dtype=np.float32))
    expected = LOG_PROBS.copy()
    expected[0, 5], expected[2, 6] = -np.inf, -0.25
    assert changed.log_probs_of(ALL) == pytest.approx(expected, abs=1e-5)
    assert changed.largest(1)[1][2] == 6
    assert logits.log_probs_of(ALL) == pytest.approx(LOG_PROBS, abs=1e-5)


@everywhere
def test_rows_are_repeated_side_by_side(make):
    assert make(LOGITS).repeat_rows(2).log_probs_of(ALL.repeat(2, axis=0)) == pytest.approx(
        LOG_PROBS.repeat(2, axis=0), abs=1e-5
    )


@everywhere
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_total_is_the_sum_of_all_at_a_temperature(make, temperature):
    expected = np.log(np.exp(LOG_PROBS / temperature).sum(axis=1))
    assert make(LOGITS).logsumexp(temperature) == pytest.approx(expected, abs=1e-4)


@everywhere
@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_samples_the_token_at_the_uniform_number(make, temperature):
    shares = np.exp(LOG_PROBS / temperature)
    shares /= shares.sum(axis=1, keepdims=True)
    middle = shares.cumsum(axis=1) - shares / 2
    for tokens in np.argsort(-shares, axis=1)[:, :4].T:
        uniforms = middle[np.arange(ROWS), tokens]
        assert make(LOGITS).sample_tokens(uniforms, temperature).tolist() == tokens.tolist()


@everywhere
def test_never_samples_excluded_tokens_if_others_remain(make):
    logits = np.full((1, 5), -np.inf, dtype=np.float32)
    logits[0, [1, 3]] = 0.0
    for uniform, token in ((0.0, 1), (0.4999, 1), (0.5001, 3), (1 - 2**-53, 3)):
        assert make(logits).sample_tokens(np.array([uniform]), 1.0).tolist() == [token]
        assert inverse_cdf(logits, np.array([uniform])).tolist() == [token]


@everywhere
def test_one_nan_makes_the_whole_row_nan_and_no_other(make):
    logits = LOGITS.copy()
    logits[1, 9] = np.nan
    for result in (make(logits).log_probs_of(ALL), make(logits).largest(4)[0], make(logits).largest(1)[0]):
        assert np.isnan(result).all(axis=1).tolist() == [False, True, False]
        assert not np.isnan(result[[0, 2]]).any()


def test_array_is_not_copied_to_read_it():
    logits = LOGITS.copy()
    held = ArrayLogits(logits)
    logits[0, 3] = 90.0
    assert held.largest(1)[1][0] == 3
