"""BLEU-1 … BLEU-4 (Papineni et al., 2002) of a corpus. The reference length is the closest one.

Shapes: N captions, R resamples.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from grr_coca.evaluate.captioning.ngrams import MAX_ORDER, Ngram, count_ngrams

TINY, SMALL = 1e-15, 1e-9
"""pycocoevalcap adds these to numerators and denominators, so that nothing is divided by zero."""
Tokens = Sequence[str]


def bleu_statistics(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """The counts of each caption for BLEU, N × 10: matches and n-grams of 4 orders, and both lengths.

    The score of a corpus depends only on their sums.
    """
    rows = [_statistics(hypothesis, refs) for hypothesis, refs in zip(hypotheses, references, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(-1, 2 * MAX_ORDER + 2)


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-1 … BLEU-4 from the statistics of a caption, or their sums over a corpus: … × 10 to … × 4."""
    matches, guesses = sums[..., :MAX_ORDER], sums[..., MAX_ORDER : 2 * MAX_ORDER]
    length, reference = sums[..., -2:-1], sums[..., -1:]
    precisions = (matches + TINY) / (guesses + SMALL)
    orders = np.arange(1, MAX_ORDER + 1)
    ratio = (length + TINY) / (reference + SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.cumprod(precisions, axis=-1) ** (1 / orders) * brevity


def _statistics(hypothesis: Tokens, references: Sequence[Tokens]) -> list[int]:
    counts = count_ngrams(hypothesis)
    most = [_most_often(order) for order in zip(*map(count_ngrams, references), strict=True)]
    matches = [sum((mine & allowed).values()) for mine, allowed in zip(counts, most, strict=True)]
    guesses = [max(0, len(hypothesis) - order) for order in range(MAX_ORDER)]
    closest = min((abs(len(reference) - len(hypothesis)), len(reference)) for reference in references)[1]
    return [*matches, *guesses, len(hypothesis), closest]


def _most_often(counters: Sequence[Counter[Ngram]]) -> Counter[Ngram]:
    most: Counter[Ngram] = Counter()
    for counter in counters:
        most |= counter
    return most
