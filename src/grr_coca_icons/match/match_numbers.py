"""Parameters for matching: weights of the features, and curves that convert a score to a probability.

`scripts/fit_match.py` fits them to one model, and writes them to `match.json` next to the model's weights. A model
without this file ranks candidates by the cosine of images, without probabilities.

- The *score* of a pair of images is a weighted sum of `FEATURES`. Candidates are sorted by score.
- The *probability* that a candidate is the equivalent is a logistic curve over its score and its lead, which is the
  difference from the score of the best other candidate.
- *No equivalent* is reported if the probability that any of the candidates is the equivalent is below a limit.

There are two sets of parameters, for matching with names and without names. Each set has two curves: one for targets
whose drawings were in training, and one for other targets.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grr_coca.common.dict_to_dataclass import from_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json
from grr_coca.model.checkpoint_files import MATCHING

FEATURES = (
    "picture",
    "picture_stands_out",
    "taken",
    "name_shown",
    "shown_name",
    "names",
    "same_name",
    "spelling",
    "missing_words",
    "extra_words",
)
"""Features of a pair of a source and a candidate:

- `picture`: cosine of the two images
- `picture_stands_out`: the same cosine, as a z-score above the median of the target's images
- `taken`: how much closer the candidate's image is to another concept of the source's set than to the source, as a
  negative number; 0 if no other concept is closer
- `name_shown`: z-score of the candidate's image for the source's name
- `shown_name`: z-score of the candidate's name for the source's image
- `names`: cosine of the two names
- `same_name`: 1 if the two have a name in common, without style words
- `spelling`: similarity of spelling, from 0 to 1
- `missing_words`: minus the fraction of words in the source's name that are missing in the candidate's names, although
  the target's names use them: `wifi` lacks one of the words of `wifi-cog`
- `extra_words`: the same for the words in the candidate's name
"""
IMAGE_FEATURES = ("picture", "picture_stands_out", "taken")
"""Features that need no names."""

CANDIDATES = 5
"""Default number of candidates per image. Whether an image has an equivalent is decided by the probabilities of this
number of candidates.
"""


@dataclass(frozen=True, kw_only=True)
class ProbabilityCurve:
    """Logistic curve. If the probability that any candidate is correct is below `least`, no equivalent is reported."""

    per_score: float
    per_lead: float
    offset: float
    least: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, vars(self).values())) or not 0 <= self.least <= 1:
            raise UserError(f"a curve must have finite numbers, and 'least' from 0 to 1, got {vars(self)}")

    def probabilities(self, scores: np.ndarray, leads: np.ndarray) -> np.ndarray:
        """Return the probability (N) that each candidate is the equivalent, from the scores (N) and leads (N)."""
        logits = self.per_score * scores + self.per_lead * leads + self.offset
        return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))


@dataclass(frozen=True, kw_only=True)
class MatchWeights:
    """Weights of the features by name, and curves for targets whose drawings were in training and for other targets."""

    weights: dict[str, float]
    seen: ProbabilityCurve
    unseen: ProbabilityCurve

    def __post_init__(self) -> None:
        if not self.weights.keys() <= set(FEATURES) or not all(map(math.isfinite, self.weights.values())):
            raise UserError(f"'weights' must be finite numbers with keys among {', '.join(FEATURES)}")

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the scores (N) of pairs from their features (N 10). Features without a weight do not count."""
        return features @ np.array([self.weights.get(name, 0.0) for name in FEATURES])


@dataclass(frozen=True, kw_only=True)
class MatchParameters:
    """All match parameters of a model.

    Attributes:
        with_names, without_names: Parameters for matching with names, and without names.
        seen_sets: Prefixes of the icon sets in training.
        label_limits: Pairs of a fraction and a cosine, by increasing fraction. With this cosine as its limit,
            `label_check.check_labels` reports this fraction of correct names. Empty if it was not measured.
    """

    with_names: MatchWeights
    without_names: MatchWeights
    seen_sets: tuple[str, ...]
    label_limits: tuple[tuple[float, ...], ...] = ()


_NO_CURVE = ProbabilityCurve(per_score=0.0, per_lead=0.0, offset=0.0, least=0.0)
IMAGE_ONLY = MatchWeights(weights={"picture": 1.0}, seen=_NO_CURVE, unseen=_NO_CURVE)
"""Weights for models that have no fitted parameters. The resulting probabilities are meaningless and not shown."""


def match_numbers(folder: Path) -> MatchParameters | None:
    """Return the match parameters of the model in a folder, or None if the model has no such parameters.

    Raises:
        UserError: If `match.json` cannot be read, or has invalid parameters.
    """
    path = folder / MATCHING
    return from_dict(MatchParameters, read_json(path), str(path)) if path.exists() else None
