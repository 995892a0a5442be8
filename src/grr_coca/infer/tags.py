"""Several words for one picture, with probabilities: from likely captions, and from words of captions of training.

The words and the numbers were fitted for one model by `scripts/fit_tags.py`, and lie beside its weights, in
`tags.json`. The probability that people would give a picture a word is a logistic function of `EVIDENCE`.

Shapes: N words of the vocabulary, K candidates of one image, E embedding width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grr_coca.common.dict_to_dataclass import from_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json
from grr_coca.common.shapes import Float
from grr_coca.data.text import FUNCTION_WORDS, singular
from grr_coca.infer.generate.captions import Caption
from grr_coca.infer.generate.options import GenerationOptions
from grr_coca.model.checkpoint_files import TAGS

EVIDENCE = ("cosine", "captions", "tags", "beams", "unlisted", "constant")
"""What is known of a word for an image: the cosine of the two; logarithms of how many captions of training were this
word, how many of them stood behind a first one, as tags do, and how likely the beams are that have it; 1 for a word of
a beam that is not in the vocabulary, so that the first three are not known; and 1."""

_BEAMS = 5
"""Captions that words are taken from."""
_NEAREST = 60
"""Words of the vocabulary that are candidates."""
_UNLISTED_COSINE = 0.3
"""In place of a cosine that is not known. `unlisted` has a weight of its own, so that its value does not matter."""
_MIN_PROBABILITY = 1e-3
_MIN_LETTERS = 3
MAX_TAGS = 20


class Tag(NamedTuple):
    """A word or a short phrase for an image. `probability`: that people would give it to the image."""

    text: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class TagNumbers:
    """The numbers that were fitted for a model.

    `words`: the vocabulary; `counts`: how many captions of training were this word; `tag_counts`: how many of them
    stood behind a first one; `weights`: of `EVIDENCE`; `fitted_on`: the images of the fit, in words.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    tag_counts: tuple[int, ...]
    weights: tuple[float, ...]
    fitted_on: str

    def __post_init__(self) -> None:
        if not self.words or not len(self.words) == len(self.counts) == len(self.tag_counts):
            raise UserError("'words', 'counts' and 'tag_counts' are not of one length, or empty")
        if len(self.weights) != len(EVIDENCE):
            raise UserError(f"'weights' are not {len(EVIDENCE)} numbers: {', '.join(EVIDENCE)}")


def read_tag_numbers(folder: Path) -> TagNumbers | None:
    """The numbers of the model in a folder; None if it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / TAGS
    return from_dict(TagNumbers, read_json(path), str(path)) if path.exists() else None


def with_beams(options: GenerationOptions) -> GenerationOptions:
    """The options with as many captions as words are taken from. Without beams, there are five.

    Raises:
        UserError: captions are sampled.
    """
    if options.temperature is not None:
        raise UserError("tags are taken from the likeliest captions, so not with temperature; leave one of them out")
    beams = options.num_beams if options.num_beams > 1 else _BEAMS
    return replace(options, num_beams=beams, num_captions=max(options.num_captions, min(beams, _BEAMS)))


class Tagger:
    """Gives images words.

    Args:
        numbers: of the model.
        vectors: the embeddings of the words of the vocabulary by the model, N E.
    """

    def __init__(self, numbers: TagNumbers, vectors: Float[np.ndarray, "N E"]) -> None:
        self._numbers, self._vectors = numbers, vectors
        self._weights = np.array(numbers.weights)

    def tags(self, embedding: Float[np.ndarray, " E"], captions: Sequence[Caption], count: int) -> tuple[Tag, ...]:
        """The likeliest distinct words of an image, at most `count`.

        Args:
            embedding: of the image.
            captions: of the image by beam search, see `with_beams`.
            count: of words.
        """
        words, evidence = self.candidates(embedding, captions)
        probabilities = 1 / (1 + np.exp(-evidence @ self._weights))
        found: dict[str, Tag] = {}
        for place in np.argsort(-probabilities, kind="stable"):
            found.setdefault(in_singular(words[place]), Tag(words[place], float(probabilities[place])))
            if len(found) == count:
                break
        return tuple(found.values())

    def candidates(
        self, embedding: Float[np.ndarray, " E"], captions: Sequence[Caption]
    ) -> tuple[list[str], Float[np.ndarray, "K 6"]]:
        """Words that an image may have, and the evidence for each."""
        cosines = self._vectors @ embedding
        likely = cosines * self._weights[0] + self._prior @ self._weights[1:3]
        nearest = np.sort(np.argpartition(-likely, min(_NEAREST, len(likely)) - 1)[:_NEAREST])
        beams = _words_of(captions)
        words = list(dict.fromkeys([*beams, *(self._numbers.words[place] for place in nearest)]))
        rows = []
        for word in words:
            place = self._places.get(word)
            known = (_UNLISTED_COSINE, 0.0, 0.0) if place is None else (cosines[place], *self._prior[place])
            rows.append((*known, math.log(beams.get(word, 0.0) + _MIN_PROBABILITY), float(place is None), 1.0))
        return words, np.array(rows)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self._numbers.words)}

    @cached_property
    def _prior(self) -> Float[np.ndarray, "N 2"]:
        return np.log1p(np.array([self._numbers.counts, self._numbers.tag_counts], np.float64).T)


def in_singular(text: str) -> str:
    """A text by which words that differ in their number alone are known as one: "arrows" and "arrow"."""
    return " ".join(map(singular, text.split()))


def _words_of(captions: Sequence[Caption]) -> dict[str, float]:
    """The captions in lower case, and their words, each with the probability that a beam has it."""
    found: dict[str, float] = {}
    for caption in captions:
        text = " ".join(caption.text.lower().split())
        words = [word for word in text.split() if len(word) >= _MIN_LETTERS and word not in FUNCTION_WORDS]
        for word in dict.fromkeys([text, *words] if text else []):
            found[word] = found.get(word, 0.0) + math.exp(math.fsum(caption.log_probs))
    return found
