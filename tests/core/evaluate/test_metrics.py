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


@given(st.integers(1, 6), st.data())
def test_chance_is_the_mean_over_all_orders(num_candidates, draw):
    right = draw.draw(st.integers(1, num_candidates))
    k = draw.draw(st.integers(1, num_candidates))
    relevant = torch.arange(num_candidates)[None] < right
    orders = list(itertools.permutations(range(num_candidates)))
    hits = sum(any(candidate < right for candidate in order[:k]) for order in orders)
    assert chance(relevant, k) == pytest.approx(hits / math.factorial(num_candidates))
