"""Retrieval metrics on matrices worked out by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import query_ranks

SIMILARITY = torch.tensor(
    [
        [0.9, 0.1, 0.2, 0.3],  # right at once
        [0.8, 0.7, 0.1, 0.0],  # right at the second
        [0.4, 0.3, 0.1, 0.2],  # right at the last
    ]
)
DIAGONAL = torch.eye(3, 4, dtype=torch.bool)


def recall_at_k(similarity, relevant, k):
    return query_ranks(similarity, relevant).recall(k)


def chance(relevant, k):
    """Of an order in which nothing is known of the candidates."""
    return query_ranks(torch.zeros(relevant.shape), relevant).chance(k)


@pytest.mark.parametrize(("k", "recall"), [(1, 1 / 3), (2, 2 / 3), (3, 2 / 3), (4, 1.0), (10, 1.0)])
def test_recall_is_the_share_of_queries_with_a_hit_among_k(k, recall):
    assert recall_at_k(SIMILARITY, DIAGONAL, k) == pytest.approx(recall)


def test_any_of_several_right_answers_is_a_hit():
    relevant = DIAGONAL.clone()
    relevant[1, 0] = relevant[2, 1] = True
    assert recall_at_k(SIMILARITY, relevant, 1) == pytest.approx(2 / 3)
    assert recall_at_k(SIMILARITY, relevant, 2) == 1.0


def test_a_right_answer_behind_other_right_answers_is_not_pushed_back_by_them():
    relevant = torch.tensor([[False, True, True, True]])
    assert recall_at_k(torch.tensor([[0.5, 0.9, 0.8, 0.7]]), relevant, 1) == 1.0
    assert recall_at_k(torch.tensor([[0.95, 0.9, 0.8, 0.7]]), relevant, 2) == 1.0


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), float("inf"), float("-inf")])
def test_a_tie_counts_against_the_right_answer(value):
    similarity = torch.full((4, 4), value)
    assert recall_at_k(similarity, torch.eye(4, dtype=torch.bool), 1) == 0.0
    assert recall_at_k(similarity, torch.eye(4, dtype=torch.bool), 3) == 0.0


def test_chance_of_one_right_answer_is_k_in_n():
    relevant = torch.eye(20, dtype=torch.bool)
    assert [chance(relevant, k) for k in (1, 5, 20, 50)] == pytest.approx([0.05, 0.25, 1.0, 1.0])


@given(st.integers(1, 6), st.data())
def test_chance_is_the_mean_over_all_orders(num_candidates, draw):
    right = draw.draw(st.integers(1, num_candidates))
    k = draw.draw(st.integers(1, num_candidates))
    relevant = torch.arange(num_candidates)[None] < right
    orders = list(itertools.permutations(range(num_candidates)))
    hits = sum(any(candidate < right for candidate in order[:k]) for order in orders)
    assert chance(relevant, k) == pytest.approx(hits / math.factorial(num_candidates))


def test_recall_of_noise_is_chance():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(2000, 50, generator=generator)
    relevant = torch.arange(50)[None].expand(2000, -1) < 3
    for k in (1, 5, 10):
        assert recall_at_k(similarity, relevant, k) == pytest.approx(chance(relevant, k), abs=0.03)
