"""Reciprocal rank fusion: two rankings made one (Cormack et al., SIGIR 2009)."""

from collections.abc import Sequence

CONSTANT = 60
"""Of the paper: how little the first ranks stand above the next."""


def fused(rankings: Sequence[Sequence[int]]) -> list[int]:
    """The ids of all rankings by the sum of 1 / (60 + rank), the best first; ties as they came."""
    sums: dict[int, float] = {}
    for ranking in rankings:
        for rank, identity in enumerate(ranking, 1):
            sums[identity] = sums.get(identity, 0.0) + 1 / (CONSTANT + rank)
    return sorted(sums, key=lambda identity: -sums[identity])
