"""What may follow: worked out by hand, and against the plainest loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grr_coca.errors import UserError
from grr_coca.generate.options import GenerationOptions
from grr_coca.generate.sampling import (
    apply_rules,
    penalize_repetition,
    require_a_choice,
    without_end,
    without_repeated_ngrams,
)

LOG_PROBS = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
tokens = st.integers(0, 3)


def _ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), -1)


def test_a_repeated_token_is_penalized_once_however_often_it_came() -> None:
    penalized = penalize_repetition(LOG_PROBS, _ids([1, 1, 3]), 2.0)
    expected = torch.tensor([[0.5, 0.25**2, 0.125, 0.125**2]]).log()
    torch.testing.assert_close(penalized, expected)


def test_the_end_is_ruled_out_alone() -> None:
    ruled = without_end(LOG_PROBS, eos_id=0)
    assert ruled.tolist()[0] == [-math.inf, *LOG_PROBS.tolist()[0][1:]]


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
def test_what_would_repeat_an_ngram_is_ruled_out(new_ids: list[int], n: int, ruled_out: set[int]) -> None:
    ruled = without_repeated_ngrams(LOG_PROBS, _ids(new_ids), n)
    assert set(ruled.isneginf().nonzero()[:, 1].tolist()) == ruled_out


@given(rows=st.lists(st.lists(tokens, min_size=6, max_size=6), min_size=1, max_size=4), n=st.integers(1, 4))
def test_no_ngram_would_come_twice(rows: list[list[int]], n: int) -> None:
    ruled = without_repeated_ngrams(LOG_PROBS.expand(len(rows), -1), _ids(*rows), n).isneginf()
    for row, out in zip(rows, ruled.tolist(), strict=True):
        had = {tuple(row[i : i + n]) for i in range(len(row) - n + 1)}
        assert out == [(*row[len(row) - n + 1 :], token) in had for token in range(4)]


def test_rules_change_nothing_that_they_are_given() -> None:
    before, ids = LOG_PROBS.clone(), _ids([1, 1])
    options = GenerationOptions(min_length=4, repetition_penalty=1.5, no_repeat_ngram=1)
    ruled = apply_rules(LOG_PROBS, ids, options, eos_id=0)
    assert ruled.isneginf().tolist() == [[True, True, False, False]]
    assert torch.equal(LOG_PROBS, before)
    assert apply_rules(LOG_PROBS, ids, GenerationOptions(), eos_id=0) is LOG_PROBS


@pytest.mark.parametrize(("num_new", "ruled_out"), [(0, True), (2, True), (3, False)])
def test_min_length_counts_new_tokens(num_new: int, ruled_out: bool) -> None:
    ruled = apply_rules(LOG_PROBS, _ids([1] * num_new), GenerationOptions(min_length=3), eos_id=0)
    assert bool(ruled[0, 0].isneginf()) is ruled_out


def test_a_row_that_goes_on_needs_a_token() -> None:
    nothing = torch.full((2, 4), -torch.inf)
    require_a_choice(nothing, torch.tensor([False, False]))
    with pytest.raises(UserError, match="no_repeat_ngram"):
        require_a_choice(nothing, torch.tensor([False, True]))
