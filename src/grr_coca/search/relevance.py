"""How likely a hit is what was asked for.

A cosine means nothing by itself: its height depends on the model, the query and the library. Two things tell more.
One is how far the picture stands out: its score, in deviations above the median of a sample of the library. The other
is what the model itself says of the picture: how close its caption is to the query, next to captions of other pictures.
Both together give a probability by a logistic curve, whose three numbers were fitted once, to queries whose answers are
known (`benchmarks/search_relevance.py`, which also measures how often it is right). In a library of few pictures, or of
pictures of one thing, nothing can stand out, and the probabilities mean nothing (`can_tell`).

Shapes: H hits, S pictures of the sample, E embedding width.
"""

import numpy as np

from grr_coca.search.duplicates import LEAST_COSINE

PER_DEVIATION = 0.77
PER_AGREEMENT = 4.87
OFFSET = -7.7
"""The three numbers of the logistic curve."""
PRIOR_PICTURES = 5
"""The deviation of random directions weighs as much as the measured one of this many pictures."""
NOTHING = 0.15
"""If no hit is at least as likely as this, nothing in the library looks like what was asked for."""
FEWEST_DIFFERENT = 5
"""The smallest number of different pictures among which relevances are told. Among fewer, a picture that is there is
found likely less often: among two, 42 times in 100; alone, never."""
MOST_ALIKE = 0.85
"""If the median cosine of the pictures with the best hit is above this, most are taken for pictures of one thing. With
`icons`, it is usually 0.3, and 0.92 for rotated copies."""
MOST_USUAL = 0.9
"""If the median cosine of the captions with the query is above this, they are taken for captions of one thing."""
LARGEST_LOGIT = 500.0
"""Bound that keeps the exponential finite."""


def relevances(found: np.ndarray) -> np.ndarray:
    """The probability that each hit is what was asked for, H, from its `evidence`, H 2."""
    logits = found @ (PER_DEVIATION, PER_AGREEMENT) + OFFSET
    return 1 / (1 + np.exp(-np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT)))


def can_tell(best: np.ndarray, sample: np.ndarray, asked: np.ndarray, others: np.ndarray) -> bool:
    """Whether the library has enough pictures unlike each other, and unlike the best hit, to tell how likely a hit is.

    Args:
        best: embedding of the best hit, E.
        sample: as in `evidence`; so are `asked` and `others`.
    """
    if float(np.median(sample @ best)) > MOST_ALIKE or _usual(asked, others) > MOST_USUAL:
        return False
    left = sample
    for _ in range(FEWEST_DIFFERENT - 1):
        left = left[left @ left[0] < LEAST_COSINE]
        if not len(left):
            return False
    return True


def evidence(
    vector: np.ndarray,
    scores: np.ndarray,
    sample: np.ndarray,
    asked: np.ndarray,
    captions: np.ndarray,
    others: np.ndarray,
) -> np.ndarray:
    """How far each hit stands out from the library, and how close its caption is to the query: H 2.

    Args:
        vector: the query, E.
        scores: products of the hits with it, H.
        sample: embeddings of some pictures of the library, S E.
        asked: embeddings of the query's texts, of unit length; the closest one counts.
        captions: embeddings of the captions of the hits, H E.
        others: embeddings of captions of some pictures of the library.
    """
    background = sample @ vector
    middle = float(np.median(background))
    # Only the lower half counts: in a small library, what was asked for may be a good part of the upper one.
    lower = background[background <= middle] - middle
    # The deviation of a few pictures is uncertain, so it is pulled towards that of random directions, 1 / sqrt(E).
    variance = (np.square(lower).sum() + PRIOR_PICTURES / len(vector)) / (len(lower) + PRIOR_PICTURES)
    stands_out = (scores - middle) / float(np.sqrt(variance))
    usual = min(_usual(asked, others), MOST_USUAL)
    # 0: as close as the captions of any pictures are; 1: the same words.
    agreement = ((captions @ asked.T).max(axis=1) - usual) / (1 - usual)
    return np.stack([stands_out, agreement], axis=1)


def _usual(asked: np.ndarray, others: np.ndarray) -> float:
    """The median cosine of the captions of any pictures with the query."""
    return float(np.median(others @ asked.T))
