"""Reciprocal rank fusion: merges rankings into one (Cormack et al., SIGIR 2009)."""

from collections.abc import Sequence

CONSTANT = 60
"""The constant of the paper. The larger it is, the less the first ranks stand out from the next ones."""


def fused(rankings: Sequence[Sequence[int]]) -> list[int]:
    """The ids of all rankings, sorted by their sum of 1 / (60 + rank), the highest first. Ties stay as they came."""
    sums: dict[int, float] = {}
    for ranking in rankings:
        for rank, identity in enumerate(ranking, 1):
            sums[identity] = sums.get(identity, 0.0) + 1 / (CONSTANT + rank)
    return sorted(sums, key=lambda identity: -sums[identity])
