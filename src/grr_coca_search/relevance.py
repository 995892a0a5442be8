"""Relevance: the probability that a hit matches the query.

It is computed from four features of a hit. The first is the z-score of the image: its score, in standard deviations
above the median score of a sample of the library. The second is the similarity between the image's own caption and the
query, relative to that of other captions. The third is the size of the sample, because in a larger library, more images
have high scores by chance. The fourth is the cosine similarity between the image and the query, because some image
always stands out, even if none matches the query. A logistic curve converts the features to a probability. Its
parameters differ between models, and were fitted to queries with known answers (`search_relevance.py --fit` in
`benchmarks/`, which also measures the accuracy). If a library has few images, or only images of one concept, no image
can stand out, and the probabilities are meaningless (`can_tell`).

User metadata counts more than these features: an image whose name, title or keywords contain the words of the query is
likely a match (`MIN_WORD_MATCH_RELEVANCE`).

Shapes: H hits, S images of the sample, E embedding width.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grr_coca.common.dict_to_dataclass import from_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json
from grr_coca.model.checkpoint_files import RELEVANCE
from grr_coca.model.config import OWN_ARCHITECTURE, CoCaConfig
from grr_coca_search.entry import MIN_COSINE

PRIOR_IMAGES = 5
"""Weight of the standard deviation for random directions when it is combined with the measured standard deviation,
expressed as a number of images.
"""
MIN_RELEVANCE = 0.1
"""Relevance below which hits count as less likely. If no hit reaches this value, the search is unsure of all hits."""
MIN_WORD_MATCH_RELEVANCE = 0.9
"""Minimum relevance of a hit whose name, title or keywords contain the words of the query."""
MIN_DIFFERENT = 5
"""Minimum number of different images for valid relevances. In a smaller library, no image can stand out."""
MAX_IMAGE_COSINE = 0.75
"""Maximum median cosine similarity between the sampled images and the best hit. If the median is larger, all images of
the library are assumed to show one concept. With the model `icons`, the median is usually 0.1; for rotated copies of
one image, it is 0.83."""
MAX_CAPTION_COSINE = 0.9
"""Maximum median cosine similarity between the sampled captions and the query. If the median is larger, all captions
are assumed to describe one concept."""
_MAX_LOGIT = 500.0
"""Bound on the logits, which keeps the exponential finite."""


@dataclass(frozen=True, kw_only=True)
class RelevanceCurve:
    """Parameters of the logistic curve: a weight for each column of `hit_features`, and the logit (`offset`) of a hit
    whose features are all 0.

    Attributes:
        nothing_below: Relevance that at least one of the first hits must reach; otherwise, the verdict is that no image
            matches the query. The value is chosen so that few queries with a correct hit get this verdict.
        captioned: Fraction of correct hits among hits whose caption contains the words of the query. It is the minimum
            relevance of such hits.

    Raises:
        UserError: If a parameter is not a finite number.
    """

    per_deviation: float
    per_agreement: float
    per_log_images: float
    offset: float
    per_cosine: float = 0.0
    captioned: float = 0.0
    nothing_below: float = 0.02

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value):
                raise UserError(f"'{name}' must be a finite number, got {value}")

    def relevances(self, found: np.ndarray) -> np.ndarray:
        """Return the probability that each hit matches the query, H, from its `hit_features`, H 4."""
        weights = (self.per_deviation, self.per_agreement, self.per_log_images, self.per_cosine)
        logits = found @ weights + self.offset
        return 1 / (1 + np.exp(-np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT)))


_DEFAULT_CURVE = RelevanceCurve(
    per_deviation=0.85,
    per_agreement=4.13,
    per_log_images=-0.32,
    per_cosine=2.14,
    offset=-6.71,
    nothing_below=0.0161,
    captioned=0.82,
)
"""Curve that was fitted to both bundled models together. It is used for all models of the same architectures that do
not have their own curve."""


def curve_of(folder: Path, config: "CoCaConfig") -> RelevanceCurve | None:
    """Return the curve of the model in a folder, or None if no curve was fitted to similar models.

    The cosine similarities of models imported from open_clip have other distributions, and these models were not
    measured on a library with known answers.

    Raises:
        UserError: If the file with the parameters is corrupt.
    """
    path = folder / RELEVANCE
    if path.exists():
        return from_dict(RelevanceCurve, read_json(path), str(path))
    return _DEFAULT_CURVE if config.architecture == OWN_ARCHITECTURE else None


def can_tell(best: np.ndarray, sample: np.ndarray, asked: np.ndarray, others: np.ndarray) -> bool:
    """Return whether relevances are valid.

    They are valid if the library has at least `MIN_DIFFERENT` different images, and if the median similarity of its
    images to the best hit, and that of its captions to the query, do not exceed their limits.

    Args:
        best: Embedding of the best hit, E.
        sample, asked, others: See `hit_features`.
    """
    if _median(sample @ best) > MAX_IMAGE_COSINE or _usual_cosine(asked, others) > MAX_CAPTION_COSINE:
        return False
    different = np.empty((0, sample.shape[1]), sample.dtype)
    for vector in sample:
        if (different @ vector < MIN_COSINE).all():
            different = np.concatenate([different, vector[None]])
            if len(different) == MIN_DIFFERENT:
                return True
    return False


def hit_features(
    vector: np.ndarray,
    scores: np.ndarray,
    sample: np.ndarray,
    asked: np.ndarray,
    captions: np.ndarray,
    others: np.ndarray,
) -> np.ndarray:
    """Return the features of each hit, H 4.

    The features are the z-score of the hit in the library, the similarity between the hit's caption and the query, the
    logarithm of the number of images in the sample, and the cosine similarity between the hit and the query.

    Args:
        vector: Embedding of the query, E.
        scores: Dot products of the hits with the query, H.
        sample: Embeddings of some library images, S E.
        asked: Unit-length embeddings of the texts in the query. For each caption, only the closest text counts.
        captions: Embeddings of the captions of the hits, H E.
        others: Embeddings of the captions of some library images.
    """
    deviations = z_scores(vector, scores, sample)
    usual = min(_usual_cosine(asked, others), MAX_CAPTION_COSINE)
    # The agreement is 0 if a caption is as close to the query as the captions of other images usually are, and 1 if
    # it has the same words as the query.
    agreement = ((captions @ asked.T).max(axis=1) - usual) / (1 - usual)
    log_images = np.full(len(scores), np.log(max(1, len(sample))))
    return np.stack([deviations, agreement, log_images, scores], axis=1)


def z_scores(vector: np.ndarray, scores: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Return the z-scores of images: their scores, in standard deviations above the median of the sample.

    Args:
        vector, sample: See `hit_features`.
        scores: Dot products of the images with the query.
    """
    background = sample @ vector
    middle = _median(background)
    # Only scores below the median count, because in a small library, many of the scores above it may belong to correct
    # answers.
    lower = background[background <= middle] - middle
    # The standard deviation of a few scores is uncertain, so it is shrunk toward the standard deviation for random
    # directions, 1 / sqrt(E).
    variance = (np.square(lower).sum() + PRIOR_IMAGES / len(vector)) / (len(lower) + PRIOR_IMAGES)
    return (scores - middle) / float(np.sqrt(variance))


def _usual_cosine(asked: np.ndarray, others: np.ndarray) -> float:
    """Return the median cosine similarity between the captions of other images and the query."""
    return _median(others @ asked.T)


def _median(values: np.ndarray) -> float:
    """Return the median. `numpy.median` is not used, because its import takes a tenth of the time of a first search."""
    middle = np.sort(values, axis=None)[(values.size - 1) // 2 : values.size // 2 + 1]
    return float(middle.mean())
