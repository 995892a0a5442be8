"""What may follow: worked out by hand, and against the plainest loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grr_coca.infer.generate.captions import ArrayLogits
from grr_coca.infer.generate.options import GenerationOptions
from grr_coca.infer.generate.rules import apply_rules

LOG_PROBS = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], dtype=np.float32))
tokens = st.integers(0, 3)


def _ids(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(len(rows), -1)


def ruled(new_ids: np.ndarray, **options: object) -> np.ndarray:
    """The log-probabilities after the rules, for an end token of 0."""
    rows, logits = len(new_ids), ArrayLogits(LOG_PROBS.repeat(len(new_ids), axis=0) + 3)
    allowed = apply_rules(logits, new_ids, GenerationOptions(**options), eos_id=0)
    return allowed.log_probs_of(np.arange(4)[None].repeat(rows, axis=0))


def test_repeated_token_is_penalized_once():
    penalized = ruled(_ids([1, 1, 3]), repetition_penalty=2.0)
    assert np.exp(penalized[0]) == pytest.approx([0.5, 0.25**2, 0.125, 0.125**2])


def test_only_the_end_token_is_excluded():
    (probs,) = np.exp(ruled(_ids([1]), min_length=2))
    assert probs == pytest.approx([0.0, 0.25, 0.125, 0.125])


@pytest.mark.parametrize(
    ("new_ids", "n", "ruled_out"),
    [
        ([0, 1, 2, 0, 1], 3, {2}),
        ([0, 1, 2, 0, 1], 2, {2}),
        ([0, 1, 0, 2, 0], 2, {1, 2}),
        ([0, 1], 3, set()),
        ([], 1, set()),
        ([3, 1], 1, {1, 3}),
    ],
)
def test_tokens_that_repeat_an_ngram_are_excluded(new_ids, n, ruled_out):
    (log_probs,) = ruled(_ids(new_ids), no_repeat_ngram=n)
    assert set(np.flatnonzero(np.isneginf(log_probs)).tolist()) == ruled_out


@given(rows=st.lists(st.lists(tokens, min_size=6, max_size=6), min_size=1, max_size=4), n=st.integers(1, 4))
def test_repeated_ngrams_are_excluded(rows, n):
    for row, out in zip(rows, np.isneginf(ruled(_ids(*rows), no_repeat_ngram=n)).tolist(), strict=True):
        had = {tuple(row[i : i + n]) for i in range(len(row) - n + 1)}
        assert out == [(*row[len(row) - n + 1 :], token) in had for token in range(4)]


def test_excluded_token_stays_excluded_with_any_penalty():
    (log_probs,) = ruled(_ids([1, 2, 1]), repetition_penalty=2.0, no_repeat_ngram=2, min_length=9)
    assert np.exp(log_probs) == pytest.approx([0.0, 0.25**2, 0.0, 0.125])


def test_rules_do_not_modify_their_input():
    array, ids = LOG_PROBS.copy(), _ids([1, 1])
    logits = ArrayLogits(array)
    changed = apply_rules(logits, ids, GenerationOptions(min_length=4, repetition_penalty=1.5, no_repeat_ngram=1), 0)
    assert np.isneginf(changed.log_probs_of(np.array([[0, 1, 2, 3]]))).tolist() == [[True, True, False, False]]
    assert np.array_equal(array, LOG_PROBS)
    assert logits.log_probs_of(np.array([[0, 1, 2, 3]])) == pytest.approx(LOG_PROBS)
    assert apply_rules(logits, ids, GenerationOptions(), 0) is logits
    assert apply_rules(logits, ids, GenerationOptions(no_repeat_ngram=3, min_length=1), 0) is logits


@pytest.mark.parametrize(("num_new", "ruled_out"), [(0, True), (2, True), (3, False)])
def test_min_length_counts_new_tokens(num_new, ruled_out):
    assert bool(np.isneginf(ruled(_ids([1] * num_new), min_length=3)[0, 0])) is ruled_out
