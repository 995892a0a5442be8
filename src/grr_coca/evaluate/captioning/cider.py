"""CIDEr and CIDEr-D (Vedantam et al., arXiv 1411.5726): agreement in n-grams that distinguish images.

CIDEr is the mean cosine between the tf-idf vectors of a caption and of its references, over n = 1 … 4. CIDEr-D also
clips repeated n-grams, and penalizes a difference in length (σ = 6). pycocoevalcap and the COCO server, and so the
literature, call CIDEr-D "CIDEr". As there, both scores are multiplied by 10, and words are not stemmed.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grr_coca.evaluate.captioning.ngrams import Ngram, count_ngrams

SIGMA = 6.0
SCALE = 10.0
Tokens = Sequence[str]


class CiderScores(NamedTuple):
    """The two scores of each caption, N. The score of the corpus is their mean."""

    cider: np.ndarray
    cider_d: np.ndarray


class _Vector(NamedTuple):
    weights: list[dict[Ngram, float]]
    norms: list[float]
    num_bigrams: int


def cider(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> CiderScores:
    """Both scores of every caption. Document frequencies are counted over the references of all images."""
    counts = [[count_ngrams(reference) for reference in refs] for refs in references]
    frequency = _document_frequency(counts)
    log_images = math.log(len(references)) if references else 0.0
    plain, clipped = [], []
    for hypothesis, refs in zip(hypotheses, counts, strict=True):
        mine = _vector(count_ngrams(hypothesis), frequency, log_images)
        pairs = [_similarity(mine, _vector(reference, frequency, log_images)) for reference in refs]
        plain.append(SCALE * sum(pair[0] for pair in pairs) / len(pairs))
        clipped.append(SCALE * sum(pair[1] for pair in pairs) / len(pairs))
    return CiderScores(np.array(plain), np.array(clipped))


def _document_frequency(counts: Sequence[Sequence[list[Counter[Ngram]]]]) -> Counter[Ngram]:
    frequency: Counter[Ngram] = Counter()
    for refs in counts:
        frequency.update({ngram for reference in refs for order in reference for ngram in order})
    return frequency


def _vector(counts: list[Counter[Ngram]], frequency: Counter[Ngram], log_images: float) -> _Vector:
    weights = [
        {ngram: count * (log_images - math.log(max(1, frequency[ngram]))) for ngram, count in order.items()}
        for order in counts
    ]
    norms = [math.sqrt(sum(weight * weight for weight in order.values())) for order in weights]
    return _Vector(weights, norms, counts[1].total())


def _similarity(mine: _Vector, other: _Vector) -> tuple[float, float]:
    # pycocoevalcap compares lengths in bigrams: a caption of one token is as long as an empty one.
    penalty = math.exp(-((mine.num_bigrams - other.num_bigrams) ** 2) / (2 * SIGMA**2))
    plain = clipped = 0.0
    for order, my_weights in enumerate(mine.weights):
        norm = mine.norms[order] * other.norms[order]
        if not norm:
            continue
        theirs = other.weights[order]
        shared = [(weight, theirs[ngram]) for ngram, weight in my_weights.items() if ngram in theirs]
        plain += sum(weight * their for weight, their in shared) / norm
        clipped += sum(min(weight, their) * their for weight, their in shared) / norm * penalty
    return plain / len(mine.weights), clipped / len(mine.weights)
