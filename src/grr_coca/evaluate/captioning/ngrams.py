"""Counts of n-grams (runs of n tokens)."""

from collections import Counter
from collections.abc import Sequence

MAX_ORDER = 4
Ngram = tuple[str, ...]


def count_ngrams(tokens: Sequence[str]) -> list[Counter[Ngram]]:
    """Count the occurrences of each run of n tokens, for n = 1 … 4."""
    return [
        Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))
        for order in range(1, MAX_ORDER + 1)
    ]
