"""Relevance: the probability that a hit matches the query.

It has four features. The first is the z-score of the image: its score, in deviations above the median of a sample
of the library. The second is the similarity of the image's own caption to the query, compared with the captions of
other images. The third is the size of the sample: among many images, more have high scores by chance. The fourth is the
cosine itself: some image always stands out, even if none matches the query. A logistic curve converts them to a
probability. Its parameters belong to the model, fitted to queries with known answers (`search_relevance.py --fit` in
`benchmarks/`, which also measures its accuracy). In a library of few images, or of images of one concept, no image can
stand out, and the probabilities are meaningless (`can_tell`).

User metadata counts more than these: an image whose name, title or keywords have the words of the query is likely a
match (`WRITTEN`).

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
from grr_coca.model.config import OWN, CoCaConfig
from grr_coca_search.duplicates import MIN_COSINE

PRIOR_IMAGES = 5
"""Weight of the deviation of random directions, in images of the measured deviation."""
MIN_RELEVANCE = 0.1
"""Hits with a lower relevance are less likely. If no hit reaches it, the search is unsure of all hits."""
WRITTEN = 0.9
"""Minimum relevance of a hit whose name, title or keywords have the words of the query."""
MIN_DIFFERENT = 5
"""Relevances are valid if the library has at least this many different images: among fewer, no image can stand out."""
MAX_IMAGE_COSINE = 0.75
"""If the median cosine of the sample with the best hit is above this, the library counts as images of one concept.
With `icons`, it is usually 0.1, and 0.83 for rotated copies."""
MAX_CAPTION_COSINE = 0.9
"""If the median cosine of captions with the query is above this, they count as captions of one concept."""
_MAX_LOGIT = 500.0
"""Bound of the logits, which keeps the exponential finite."""


@dataclass(frozen=True, kw_only=True)
class RelevanceCurve:
    """Parameters of the logistic curve: a weight for each column of `evidence`, and the logit where all are 0.

    Attributes:
        nothing_below: If all of the first hits are less relevant than this, no image matches the query. It is chosen
            so that few queries with a correct hit get this verdict.
        captioned: Fraction of correct hits among those whose caption has the words of the query, which is their minimum
            relevance.
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
                raise UserError(f"'{name}': {value} is not a finite number")

    def relevances(self, found: np.ndarray) -> np.ndarray:
        """Return the probability that each hit matches the query, H, from its `evidence`, H 4."""
        weights = (self.per_deviation, self.per_agreement, self.per_log_images, self.per_cosine)
        logits = found @ weights + self.offset
        return 1 / (1 + np.exp(-np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT)))


_COMMON = RelevanceCurve(
    per_deviation=0.85,
    per_agreement=4.13,
    per_log_images=-0.32,
    per_cosine=2.14,
    offset=-6.71,
    nothing_below=0.0161,
    captioned=0.82,
)
"""Curve fitted to both bundled models together, for models of the same architectures without their own fit."""


def curve_of(folder: Path, config: "CoCaConfig") -> RelevanceCurve | None:
    """Return the curve of the model in a folder. None: no fit exists for similar models.

    Models imported from open_clip have other cosines, and no library with known answers was measured with them.

    Raises:
        UserError: If the file with the parameters is corrupt.
    """
    path = folder / RELEVANCE
    if path.exists():
        return from_dict(RelevanceCurve, read_json(path), str(path))
    return _COMMON if config.architecture == OWN else None


def can_tell(best: np.ndarray, sample: np.ndarray, asked: np.ndarray, others: np.ndarray) -> bool:
    """Return whether relevances are valid: the library has enough images that differ from each other and from the best
    hit.

    Args:
        best: Embedding of the best hit, E.
        sample: See `evidence`, like `asked` and `others`.
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


def evidence(
    vector: np.ndarray,
    scores: np.ndarray,
    sample: np.ndarray,
    asked: np.ndarray,
    captions: np.ndarray,
    others: np.ndarray,
) -> np.ndarray:
    """Return, for each hit, its z-score in the library, the similarity of its caption to the query, the logarithm of
    the number of images of the sample, and the cosine of the hit with the query, H 4.

    Args:
        vector: The query, E.
        scores: Dot products of the hits with it, H.
        sample: Embeddings of some images of the library, S E.
        asked: Embeddings of the texts of the query, of unit length. Only the closest text counts.
        captions: Embeddings of the captions of the hits, H E.
        others: Embeddings of captions of some images of the library.
    """
    stands_out = z_scores(vector, scores, sample)
    usual = min(_usual_cosine(asked, others), MAX_CAPTION_COSINE)
    # 0: as close as captions of other images; 1: the same words.
    agreement = ((captions @ asked.T).max(axis=1) - usual) / (1 - usual)
    log_images = np.full(len(scores), np.log(max(1, len(sample))))
    return np.stack([stands_out, agreement, log_images, scores], axis=1)


def z_scores(vector: np.ndarray, scores: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Return the z-scores of images: their scores, in deviations above the median of the sample.

    Args:
        vector: See `evidence`, like `sample`.
        scores: Dot products of some images with it.
    """
    background = sample @ vector
    middle = _median(background)
    # Only the lower half counts: in a small library, correct answers may be a large part of the upper half.
    lower = background[background <= middle] - middle
    # The deviation of a few images is uncertain, so it is shrunk towards that of random directions, 1 / sqrt(E).
    variance = (np.square(lower).sum() + PRIOR_IMAGES / len(vector)) / (len(lower) + PRIOR_IMAGES)
    return (scores - middle) / float(np.sqrt(variance))


def _usual_cosine(asked: np.ndarray, others: np.ndarray) -> float:
    """Return the median cosine of the captions of other images with the query."""
    return _median(others @ asked.T)


def _median(values: np.ndarray) -> float:
    """Return the median without `numpy.median`, whose import takes a tenth of the time of a first search."""
    middle = np.sort(values, axis=None)[(values.size - 1) // 2 : values.size // 2 + 1]
    return float(middle.mean())
