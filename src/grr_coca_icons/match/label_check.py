"""Says which names and labels contradict their picture.

A label contradicts a picture if the cosine of the two is below a limit, and the model is sure enough that the picture
shows something else: many right names have a low cosine, as pictures cannot show what they mean (`deployment unit`).
The limits lie beside the weights (`MatchNumbers.label_limits`): at each, a known share of right names is reported by
mistake. Not judged is what the model does not know: unfamiliar pictures, and words that were rare in training. And
words that training had only as tags, beside the name of an icon, do not count: they express what an icon means (`yes`,
on a tick).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.data.text import singular
from grr_coca.infer.generate.options import GenerationOptions
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.infer.tags import read_tag_numbers
from grr_coca_icons.icon_names import words_of_name
from grr_coca_search.entry import chunks

_MAX_PIECES = 3
"""A word that the tokenizer cuts into more pieces was rare in the training captions."""
_MAX_WORDS = 8
"""Longer labels are sentences, which the model was not trained on."""
_MIN_CONFIDENCE = 0.2
"""Least probability that the caption is exactly right, with which a picture shows something else than its label. Chosen
by eye on iconoir, bi, la, carbon and tabler."""
_MAX_TAG_SHARE = 0.9
"""A word of which a larger share of the training captions are tags is not the name of a thing. Chosen by eye on twelve
findings in eight sets that are fonts of early web pages or parts of operating systems, and five in healthicons."""
_BEAMS = 3
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A picture and its label. `texts`: the label, and other names that the picture may have; one that fits is enough.
    `where`: the file, or the name of the icon; `line`: in the file, 0 if that means nothing."""

    image: Image.Image
    texts: tuple[str, ...]
    where: str
    line: int = 0


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """A label that contradicts its picture.

    `cosine`: of both; `suggestions`: what the picture shows, the likeliest first.
    """

    label: str
    where: str
    line: int
    cosine: float
    suggestions: tuple[str, ...]

    @property
    def key(self) -> str:
        """What stays the same if lines move: for a file of known findings."""
        return hashlib.sha256(f"{self.where}\0{self.label}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass
class Checked:
    """What was checked: how many labels were judged, and how many were not, as the model does not know enough."""

    contradictions: list[Contradiction]
    judged: int = 0
    passed_over: int = 0


def check_labels(pictures: Iterator[Labelled], model: ImageTextModel, limit: float) -> Checked:
    """The labels that contradict their pictures.

    Args:
        pictures: with their labels.
        model: what compares them.
        limit: the cosine below which a label contradicts its picture.
    """
    checked, words = Checked([]), _words_of_training(model)
    for batch in chunks(pictures, _BATCH):
        _check(batch, model, words, limit, checked)
    return checked


def _check(
    batch: Sequence[Labelled], model: ImageTextModel, words: "_TrainingWords", limit: float, checked: Checked
) -> None:

    def may_be_judged(text: str) -> bool:
        return knows(model, text) and words.name_a_thing({singular(word) for word in words_of_name(text).split()})

    known = [(one, texts) for one in batch if (texts := list(filter(may_be_judged, one.texts)))]
    # A label of one unknown word may be right: nothing is said of it.
    known = [(one, texts) for one, texts in known if texts[0] == one.texts[0]]
    unfamiliar = model.are_unfamiliar([one.image for one, _ in known]) if known else []
    known = [pair for pair, is_strange in zip(known, unfamiliar, strict=True) if not is_strange]
    checked.passed_over += len(batch) - len(known)
    checked.judged += len(known)
    if not known:
        return
    pictures = model.embed_images([one.image for one, _ in known])
    flat = [words_of_name(text) for _, texts in known for text in texts]
    vectors = model.embed_texts(flat)
    ends = np.cumsum([len(texts) for _, texts in known])
    doubtful = []
    for (one, texts), picture, end in zip(known, pictures, ends, strict=True):
        cosine = float((vectors[end - len(texts) : end] @ picture).max())
        if cosine < limit:
            doubtful.append((one, cosine))
    options = GenerationOptions(num_beams=_BEAMS, num_captions=_BEAMS)
    shown = model.describe_many([one.image for one, _ in doubtful], options=options) if doubtful else []
    for (one, cosine), what in zip(doubtful, shown, strict=True):
        if (what.confidence or 0) >= _MIN_CONFIDENCE:
            said = tuple(dict.fromkeys(caption.text for caption in what.captions))
            found = Contradiction(
                label=one.texts[0], where=one.where, line=one.line, cosine=round(cosine, 4), suggestions=said
            )
            checked.contradictions.append(found)


class _TrainingWords(NamedTuple):
    """Words in singular: those that many captions of training had, and those of them that name things."""

    common: frozenset[str]
    names: frozenset[str]

    def name_a_thing(self, words: set[str]) -> bool:
        """True if all words are known, and one of them names a thing."""
        return words <= self.common and bool(words & self.names)


def _words_of_training(model: ImageTextModel) -> _TrainingWords:
    """The words of the training captions of a model; none if it lacks a list of them."""
    numbers = None if model.folder is None else read_tag_numbers(model.folder)
    if numbers is None:
        return _TrainingWords(frozenset(), frozenset())
    counted = zip(numbers.words, numbers.counts, numbers.tag_counts, strict=True)
    names = {singular(word) for word, count, as_tag in counted if as_tag <= _MAX_TAG_SHARE * count}
    return _TrainingWords(
        common=frozenset(singular(word) for phrase in numbers.words for word in phrase.split()), names=frozenset(names)
    )


def knows(model: ImageTextModel, text: str) -> bool:
    """True if a text is a few words that the model has seen."""
    words = words_of_name(text).split()
    if not 0 < len(words) <= _MAX_WORDS or not any(any(letter.isalpha() for letter in word) for word in words):
        return False
    return all(len(model.tokenizer.encode(word)) <= _MAX_PIECES for word in words)


def require_limit(limits: Sequence[tuple[float, float]], share: float) -> float:
    """The limit at which this share of right names is reported by mistake, between those that were measured.

    Raises:
        UserError: the share is outside of what was measured, or nothing was.
    """
    if not limits:
        raise UserError("for this model it was never measured how far names may be from pictures; use icons")
    shares, cosines = zip(*limits, strict=True)
    if not shares[0] <= share <= shares[-1]:
        raise UserError(f"--false-alarms {share:g}: give a share from {shares[0]:g} to {shares[-1]:g}")
    return float(np.interp(share, shares, cosines))
