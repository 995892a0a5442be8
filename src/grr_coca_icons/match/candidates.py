"""Match the images of one library with those of another.

The candidates for an image are the target images that share a name with it, and those whose image or name is nearest to
its image or name, by cosine. Their features are weighted by the parameters of the model (`match_numbers.py`). Drawings
of one concept in several styles (`trash`, `trash-filled`) count as one candidate. It is represented by the best drawing
whose name indicates the same fill as the source's name or, if there is none, by the best of all these drawings.

Shapes: N images of the source, M of the target, E embedding width, P pairs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import UserError, require_extra
from grr_coca.data.tokenizer import singular
from grr_coca_icons.match.match_numbers import CANDIDATES, FEATURES, IMAGE_FEATURES, IMAGE_ONLY, MatchWeights

_DEVIATION = 5.0
"""Divisor of z-scores, so that all features have a similar scale."""
_NEAREST = {"picture": 40, "name_shown": 30, "shown_name": 20, "names": 20}
"""Number of nearest candidates to take by each kind of cosine."""
_BACKGROUND = 4096
"""Number of target images that form the background for z-scores."""
_FEW = 0.25
"""Fraction of the target's images. If fewer of them are candidates, only these candidates are compared with the
source's concepts; otherwise, all images of the target are."""
_NUMBER = re.compile(r"\d+")
_PRODUCTS = 2**24
"""Maximum number of cosines in memory at the same time."""


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Images on one side of a match.

    Attributes:
        names: Full names, such as `lucide:trash-2`.
        words: Names of each image as words without style words, its own name first, then its aliases. Empty if the
            image has no name.
        concepts: Concept of each image. Drawings of one concept in several styles have the same text.
        vectors: Embeddings (N E) of unit length.
        name_vectors: Embeddings (N E) of the first names in `words`. Empty if there are no names.
        is_seen: For each image (N), whether the drawings of its set were in training.
        is_filled: For each image (N), whether its name marks the drawing as filled.
    """

    names: list[str]
    words: list[tuple[str, ...]]
    concepts: list[str]
    vectors: np.ndarray
    name_vectors: np.ndarray
    is_seen: np.ndarray
    is_filled: np.ndarray

    @cached_property
    def row_by_name(self) -> dict[str, int]:
        """Row of each name."""
        return {name: row for row, name in reversed(list(enumerate(self.names)))}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_names(self) -> bool:
        """Whether names can be compared."""
        return len(self.name_vectors) > 0

    def part(self, rows: Sequence[int]) -> "PictureSet":
        """Return the images in the given rows."""
        return PictureSet(
            names=[self.names[row] for row in rows],
            words=[self.words[row] for row in rows],
            concepts=[self.concepts[row] for row in rows],
            vectors=self.vectors[rows],
            name_vectors=self.name_vectors[rows] if self.has_names else self.name_vectors,
            is_seen=self.is_seen[rows],
            is_filled=self.is_filled[rows],
        )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Candidate image of the target.

    Attributes:
        row: Row in the target.
        probability: Probability that the candidate is the equivalent. None if the model has no match parameters.
        score: Score for ranking candidates.
        same_name: Whether the two images have a name in common, without style words.
    """

    name: str
    row: int
    probability: float | None
    score: float
    same_name: bool


@dataclass(frozen=True, kw_only=True)
class PictureMatch:
    """Image of the source with its candidates.

    Attributes:
        name, row: Full name of the image, and its row in the source.
        candidates: Candidates, best first. Empty if no candidate is likely.
        nearest: The same candidates, even if none of them is likely. Empty if the match is decided.
        is_decided: Whether a map has determined the match, without a comparison.
    """

    name: str
    row: int
    candidates: tuple[Candidate, ...]
    nearest: tuple[Candidate, ...] = ()
    is_decided: bool = False

    @property
    def best(self) -> Candidate | None:
        """First candidate. None if no candidate is likely."""
        return self.candidates[0] if self.candidates else None


def match_pictures(
    source: PictureSet,
    target: PictureSet,
    numbers: MatchWeights | None = None,
    *,
    n: int = CANDIDATES,
    rows: Sequence[int] | None = None,
) -> list[PictureMatch]:
    """Find candidates for each image of the source.

    Args:
        source: All images of the source. Images that are not requested also matter, because a candidate that shows
            another concept of the source's set is less likely.
        target: Images to search for candidates.
        numbers: Parameters of the model, with or without names. If None, candidates are ranked by the cosine of
            images.
        n: Maximum number of candidates per image.
        rows: Rows of the source images to match. None means all.

    Returns:
        A match for each requested image, in the order of `rows`.

    Raises:
        UserError: If the target is empty, `n` is below 1, or names are compared and the extra `icons` is not installed.
    """
    if n < 1:
        raise UserError(f"the number of candidates must be at least 1, got {n}")
    if not len(target):
        raise UserError("the target has no images; pass another library")
    requested = np.arange(len(source)) if rows is None else np.asarray(rows, np.int64)
    pairs = Pairs(source, target, IMAGE_ONLY if numbers is None else numbers)
    size = max(1, _PRODUCTS // len(target))
    parts = (requested[start : start + size] for start in range(0, len(requested), size))
    return [match for part in parts for match in pairs.matches(part, n, is_fitted=numbers is not None)]


class Pairs:
    """Features of the pairs between two image sets, and the resulting matches.

    Args:
        source: Images to match.
        target: Images to search for candidates.
        numbers: Weights of the features, and probability curves. Names are compared only if both sets have names and a
            feature of names has a weight.
    """

    def __init__(self, source: PictureSet, target: PictureSet, numbers: MatchWeights) -> None:
        self._source, self._target, self._numbers = source, target, numbers
        self._uses_names = (
            source.has_names
            and target.has_names
            and len(numbers.weights) > 0
            and any(numbers.weights.get(name) for name in FEATURES if name not in IMAGE_FEATURES)
        )
        step = max(1, len(target) // _BACKGROUND)
        self._background = slice(None, None, step)
        self._concept_numbers = {concept: number for number, concept in enumerate(dict.fromkeys(source.concepts))}
        self._concept_of = np.array([self._concept_numbers[concept] for concept in source.concepts], np.int64)
        self._rivals: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._by_word: dict[str, list[int]] = {}
        if self._uses_names:
            require_extra("icons", "comparing names", unneeded=("resvg_py", "fontTools", "brotli"))
            self._source_names = [_names(words) for words in source.words]
            self._target_names = [_names(words) for words in target.words]
            self._source_words, self._target_words = (
                frozenset().union(*(names.first for names in side)) for side in (self._source_names, self._target_names)
            )
            for row, words in enumerate(target.words):
                for word in words:
                    self._by_word.setdefault(word, []).append(row)

    def matches(self, rows: np.ndarray, n: int, *, is_fitted: bool) -> Iterator[PictureMatch]:
        """Yield the matches for the given source images, each with at most `n` candidates."""
        columns, features, bounds = self.features(rows)
        scores = self._numbers.scores(features)
        same = features[:, FEATURES.index("same_name")] > 0
        for row, begin, end in zip(rows.tolist(), bounds, bounds[1:], strict=False):
            part = slice(begin, end)
            ranked = self._prefer_equal_numbers(row, columns[part], scores[part]) if self._uses_names else scores[part]
            yield self._match(row, columns[part], ranked, same[part], n, is_fitted=is_fitted)

    def _prefer_equal_numbers(self, row: int, columns: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Adjust scores so that numbers in names decide between candidates whose names differ only by numbers.

        Among these, the candidate with the source's numbers becomes the best: for `h-2`, this is `heading-2` and not
        `heading-3`. The images cannot decide this, because digits look similar in small drawings.
        """
        own = _NUMBER.findall(self._source.names[row].partition(":")[2])
        if not own:
            return scores
        series: dict[str, list[int]] = {}
        for number, column in enumerate(columns.tolist()):
            name = self._target.names[column].partition(":")[2]
            if _NUMBER.search(name):
                series.setdefault(_NUMBER.sub("#", name), []).append(number)
        changed = scores.copy()
        for numbers in series.values():
            right = [
                number
                for number in numbers
                if _NUMBER.findall(self._target.names[columns[number]].partition(":")[2]) == own
            ]
            if right:
                best, first = max(numbers, key=scores.__getitem__), max(right, key=scores.__getitem__)
                changed[best], changed[first] = scores[first], scores[best]
        return changed

    def _match(
        self, row: int, columns: np.ndarray, scores: np.ndarray, same: np.ndarray, n: int, *, is_fitted: bool
    ) -> PictureMatch:
        target, style = self._target, self._source.is_filled[row]
        best: dict[str, int] = {}
        alike: dict[str, int] = {}  # the best drawing in the style of the source
        for number in np.argsort(-scores, kind="stable").tolist():
            concept = target.concepts[columns[number]]
            if concept not in best and len(best) > max(n, CANDIDATES):
                break
            best.setdefault(concept, number)
            if target.is_filled[columns[number]] == style:
                alike.setdefault(concept, number)
        of_kept = scores[list(best.values())]
        kept = [alike.get(concept, number) for concept, number in best.items()]
        others = np.full(len(kept), of_kept[0])
        others[0] = of_kept[1] if len(kept) > 1 else of_kept[0]
        curve = self._numbers.seen if target.is_seen[columns[kept[0]]] else self._numbers.unseen
        probabilities = curve.probabilities(of_kept, of_kept - others)
        candidates = tuple(
            Candidate(
                name=target.names[columns[number]],
                row=int(columns[number]),
                probability=round(float(probabilities[rank]), 4) if is_fitted else None,
                score=round(float(of_kept[rank]), 4),
                same_name=bool(same[number]),
            )
            for rank, number in enumerate(kept[:n])
        )
        any_is_right = 1 - float(np.prod(1 - probabilities[:CANDIDATES]))
        is_likely = not is_fitted or any_is_right >= curve.least
        name = self._source.names[row]
        return PictureMatch(name=name, row=row, candidates=candidates if is_likely else (), nearest=candidates)

    def _nearest_concepts(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, for some target images, the number of the nearest source concept, its cosine, and the cosine of the
        second nearest concept.
        """
        vectors = self._target.vectors[columns]
        order = np.argsort(self._concept_of, kind="stable")
        first = np.full(len(vectors), -1)
        best = np.full(len(vectors), -1.0, np.float32)
        second = best.copy()
        starts = np.flatnonzero(np.r_[True, np.diff(self._concept_of[order]) > 0])
        ends = np.r_[starts[1:], len(order)]
        size = max(1, _PRODUCTS // max(1, len(vectors)))
        for begin in range(0, len(starts), size):
            part = slice(begin, begin + size)
            rows = order[starts[begin] : ends[part][-1]]
            cosines = self._source.vectors[rows] @ vectors.T
            of_concepts = np.maximum.reduceat(cosines, starts[part] - starts[begin], axis=0)
            top = of_concepts.argmax(axis=0)
            highest = np.take_along_axis(of_concepts, top[None], axis=0)[0]
            np.put_along_axis(of_concepts, top[None], -1, axis=0)
            runner_up = of_concepts.max(axis=0)
            is_better = highest > best
            second = np.maximum(np.where(is_better, best, highest), np.where(is_better, runner_up, second))
            first = np.where(is_better, top + begin, first)
            best = np.maximum(best, highest)
        return first, best, second

    def features(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return the features of the given source images and their candidates.

        Returns:
            The target row of each pair (P), the features of each pair (P 10) in the order of `FEATURES`, and the bounds
            of each source image's pairs: the pairs of the first image are from bounds[0] to bounds[1], exclusively.
        """
        source, target = self._source, self._target
        cosines = {"picture": source.vectors[rows] @ target.vectors.T}
        if self._uses_names:
            cosines["name_shown"] = source.name_vectors[rows] @ target.vectors.T
            cosines["shown_name"] = source.vectors[rows] @ target.name_vectors.T
            cosines["names"] = source.name_vectors[rows] @ target.name_vectors.T
        nearest = [_top_columns(cosines[name], _NEAREST[name]) for name in cosines]
        chosen: list[np.ndarray] = []
        for number, row in enumerate(rows.tolist()):
            equal = [column for word in source.words[row] for column in self._by_word.get(word, ())]
            parts = [np.asarray(equal, np.int64), *(found[number] for found in nearest)]
            chosen.append(np.unique(np.concatenate(parts)))
        bounds = np.cumsum([0, *map(len, chosen)]).tolist()
        columns = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
        pair_rows = np.repeat(np.arange(len(rows)), np.diff(bounds))
        found = {"picture": cosines["picture"][pair_rows, columns]}
        found["picture_stands_out"] = self._z_scores(cosines["picture"], pair_rows, columns)
        found["taken"] = self._rival_feature(rows[pair_rows], columns, found["picture"])
        if self._uses_names:
            found["name_shown"] = self._z_scores(cosines["name_shown"], pair_rows, columns)
            found["shown_name"] = self._z_scores(cosines["shown_name"], pair_rows, columns)
            found["names"] = cosines["names"][pair_rows, columns]
            found |= self._spelling_features(rows[pair_rows], columns)
        features = np.stack([found.get(name, np.zeros(len(columns))) for name in FEATURES], axis=1)
        return columns, features, bounds

    def _z_scores(self, cosines: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Convert the cosines at the given rows and columns to z-scores, divided by `_DEVIATION`.

        A z-score is the distance above the median of the row, in standard deviations of the row's lower half.
        """
        background = cosines[:, self._background]
        middle = np.median(background, axis=1)
        below = np.minimum(background - middle[:, None], 0)
        count = np.maximum(np.count_nonzero(below, axis=1), 1)
        deviation = np.sqrt(np.square(below).sum(axis=1) / count) + 1e-4
        return (cosines[rows, columns] - middle[rows]) / deviation[rows] / _DEVIATION

    def _rival_feature(self, rows: np.ndarray, columns: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        if not self._numbers.weights.get("taken"):
            return np.zeros(len(rows))
        requested, positions = np.unique(columns, return_inverse=True)
        if self._rivals is None and len(requested) < _FEW * len(self._target):
            first, best, second = self._nearest_concepts(requested)
        else:
            if self._rivals is None:
                self._rivals = self._nearest_concepts(np.arange(len(self._target)))
            (first, best, second), positions = self._rivals, columns
        rival = np.where(first[positions] == self._concept_of[rows], second[positions], best[positions])
        return np.minimum(0, cosines - rival)

    def _spelling_features(self, rows: np.ndarray, columns: np.ndarray) -> dict[str, np.ndarray]:
        """Return the features that compare the spelling and the words of names, by feature name.

        Each feature has a value for each pair (P). If an image has several names, `same_name` and `spelling` use the
        names that are most similar.
        """
        from rapidfuzz import fuzz, process  # lazy import, because it needs an extra

        found = {name: np.zeros(len(rows)) for name in ("same_name", "spelling", "missing_words", "extra_words")}
        pairs: list[tuple[int, str, str]] = []
        for number, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            ones, others = self._source_names[row], self._target_names[column]
            pairs += [(number, one, other) for one in ones.sorted for other in others.sorted]
            found["missing_words"][number] = -_missing_words(ones.first, others.all, self._target_words)
            found["extra_words"][number] = -_missing_words(others.first, ones.all, self._source_words)
        if not pairs:
            return found
        numbers, one_names, other_names = zip(*pairs, strict=True)
        rows_of_pairs = np.array(numbers)
        similar = process.cpdist(one_names, other_names, scorer=fuzz.ratio) / 100
        np.maximum.at(found["spelling"], rows_of_pairs, similar)
        same = np.array([one == other for one, other in zip(one_names, other_names, strict=True)], float)
        np.maximum.at(found["same_name"], rows_of_pairs, same)
        return found


class _Names(NamedTuple):
    """Names of an image: each name with its words in alphabetical order, the words of the first name, and the words of
    all names.
    """

    sorted: tuple[str, ...]
    first: frozenset[str]
    all: frozenset[str]


def _names(words: Sequence[str]) -> _Names:
    each = [frozenset(map(singular, name.split())) for name in words]
    return _Names(
        sorted=tuple(" ".join(sorted(name.split())) for name in words),
        first=each[0] if each else frozenset(),
        all=frozenset().union(*each),
    )


def _missing_words(words: frozenset[str], there: frozenset[str], used: frozenset[str]) -> float:
    """Return the fraction of `words` that `there` lacks and `used` contains."""
    return len((words - there) & used) / max(1, len(words))


def _top_columns(cosines: np.ndarray, count: int) -> np.ndarray:
    """Return the column indices of the `count` largest values in each row, in any order."""
    if cosines.shape[1] <= count:
        return np.broadcast_to(np.arange(cosines.shape[1]), cosines.shape)
    return np.argpartition(-cosines, count - 1, axis=1)[:, :count]
