"""The numbers by which pictures are matched: weights of the evidence, and curves that turn a score into a probability.

`scripts/fit_match.py` fits them for one model, and writes them beside its weights, in `match.json`. A model without
this file ranks by the cosine of the pictures, and tells no probability.

- The *score* of a pair of pictures is a weighted sum of `EVIDENCE`. The candidate with the highest score comes first.
- The *probability* that a candidate is the equivalent is a logistic curve over its score, and over its lead: the
  difference from the best other candidate.
- *None* is told where the probability that any of the candidates is the equivalent is below a limit.

There are two sets of numbers, with names and without, and in each two curves: for targets whose drawings training saw,
and for those that it did not.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grr_coca.common.dict_to_dataclass import from_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json
from grr_coca.model.checkpoint_files import MATCHING

EVIDENCE = (
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
"""What speaks for a pair of a source and a candidate:

- `picture`: cosine of the two pictures
- `picture_stands_out`: the same, in deviations above the median of the target's pictures
- `taken`: 0, or how much closer the candidate's picture is to another thing of the source's set (negative)
- `name_shown`: how far the candidate's picture stands out for the source's name
- `shown_name`: how far the candidate's name stands out for the source's picture
- `names`: cosine of the two names
- `same_name`: 1 if a name of one, without words of style, is one of the other
- `spelling`: how similar the names are written, from 0 to 1
- `missing_words`: minus the share of the words of the source's name that the candidate's names lack, although the
  target's names use them: of `wifi-cog`, `wifi` lacks a word
- `extra_words`: the same for the words of the candidate's name
"""
OF_PICTURES = ("picture", "picture_stands_out", "taken")
"""The evidence that needs no names."""

CANDIDATES = 5
"""Candidates of which probabilities are told."""


@dataclass(frozen=True, kw_only=True)
class ProbabilityCurve:
    """A logistic curve. `least`: the probability that any candidate is right, below which none is told."""

    per_score: float
    per_lead: float
    offset: float
    least: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, vars(self).values())) or not 0 <= self.least <= 1:
            raise UserError(f"{vars(self)} are not the numbers of a curve")

    def probabilities(self, scores: np.ndarray, leads: np.ndarray) -> np.ndarray:
        """The probability that each candidate is the equivalent."""
        logits = self.per_score * scores + self.per_lead * leads + self.offset
        return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Weights of the evidence, by name, and the curves for targets whose drawings training saw, or did not see."""

    weights: dict[str, float]
    seen: ProbabilityCurve
    unseen: ProbabilityCurve

    def __post_init__(self) -> None:
        if not self.weights.keys() <= set(EVIDENCE) or not all(map(math.isfinite, self.weights.values())):
            raise UserError(f"'weights' are not those of {', '.join(EVIDENCE)}")

    def scores(self, evidence: np.ndarray) -> np.ndarray:
        """The score of each pair, N, from its evidence, N 10."""
        return evidence @ np.array([self.weights.get(name, 0.0) for name in EVIDENCE])


@dataclass(frozen=True, kw_only=True)
class MatchNumbers:
    """All numbers that were fitted for a model.

    `with_names`, `without_names`; `seen_sets`: prefixes of the icon sets that training saw; `label_limits`: pairs of a
    share of right names, and the cosine of picture and name that this share is below (see `label_check`).
    """

    with_names: Numbers
    without_names: Numbers
    seen_sets: tuple[str, ...]
    label_limits: tuple[tuple[float, ...], ...] = ()


BY_PICTURE_ALONE = Numbers(
    weights={"picture": 1.0},
    seen=ProbabilityCurve(per_score=0.0, per_lead=0.0, offset=0.0, least=0.0),
    unseen=ProbabilityCurve(per_score=0.0, per_lead=0.0, offset=0.0, least=0.0),
)
"""For models of which nothing was fitted. Its probabilities mean nothing."""


def match_numbers(folder: Path) -> MatchNumbers | None:
    """The numbers of the model in a folder; None if nothing was fitted for it.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / MATCHING
    return from_dict(MatchNumbers, read_json(path), str(path)) if path.exists() else None
