"""Find names and labels that contradict their image.

A label contradicts an image if their cosine is below a limit, and the model is confident that the image shows something
else. The second condition is needed because many correct names have a low cosine: images cannot show their meaning
(`deployment unit`). The limits are stored next to the weights (`MatchParameters.label_limits`); at each limit, a known
fraction of correct names is wrongly reported. Unfamiliar images, and words that were rare in training, are not judged.
A label is judged only if at least one of its words names a concept. A word that occurred in training almost only as a
tag, in addition to an icon's name, does not: it expresses the meaning of an icon, and not what it shows (`yes` on a
tick).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.data.tokenizer import singular
from grr_coca.infer.generate.options import GenerationOptions
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.infer.tags import read_tag_model
from grr_coca_icons.icon_names import words_of_name
from grr_coca_search.entry import chunks

_MAX_PIECES = 3
"""Maximum number of tokens in a word. Longer words were rare in the training captions."""
_MAX_WORDS = 8
"""Maximum number of words in a label. Longer labels are sentences, on which the model was not trained."""
_MIN_CONFIDENCE = 0.2
"""Minimum probability that the generated caption is exactly right. Below this probability, the label is not reported.
Chosen by inspection of iconoir, bi, la, carbon and tabler."""
_MAX_TAG_SHARE = 0.9
"""Maximum fraction of tags among the training captions that consist of a word, for this word to count as the name of a
concept. Chosen by inspection of twelve findings in eight sets that are fonts of early web pages or parts of operating
systems, and of five findings in healthicons.
"""
_BEAMS = 3
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """Image and its label.

    Attributes:
        texts: The label, then other names of the image. At least one of them must match the image.
        where: File, or name of the icon.
        line: Line in the file, or 0 if the label is not from code.
    """

    image: Image.Image
    texts: tuple[str, ...]
    where: str
    line: int = 0


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Label that contradicts its image.

    Attributes:
        cosine: Cosine between the label and the image.
        suggestions: Captions that the model generates for the image, most likely first.
    """

    label: str
    where: str
    line: int
    cosine: float
    suggestions: tuple[str, ...]

    @property
    def key(self) -> str:
        """Key that identifies this finding in a file of known findings. It does not depend on line numbers."""
        return hashlib.sha256(f"{self.where}\0{self.label}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass
class LabelReport:
    """Result of a check: contradictions, and the numbers of judged and skipped labels. A judged label may be right."""

    contradictions: list[Contradiction]
    judged: int = 0
    skipped: int = 0


def check_labels(pictures: Iterator[LabelledImage], model: ImageTextModel, limit: float) -> LabelReport:
    """Find the labels that contradict their images.

    Args:
        pictures: Images with their labels.
        model: Model that compares images and labels.
        limit: Cosine below which a label contradicts its image.
    """
    checked, words = LabelReport([]), _training_words(model)
    for batch in chunks(pictures, _BATCH):
        _check(batch, model, words, limit, checked)
    return checked


def _check(
    batch: Sequence[LabelledImage], model: ImageTextModel, words: "_TrainingWords", limit: float, checked: LabelReport
) -> None:

    def may_be_judged(text: str) -> bool:
        return is_in_vocabulary(model, text) and words.name_a_concept(
            {singular(word) for word in words_of_name(text).split()}
        )

    known = [(one, texts) for one in batch if (texts := list(filter(may_be_judged, one.texts)))]
    # A label with an unknown word may be right, so it is not judged, even if other names of the image are known.
    known = [(one, texts) for one, texts in known if texts[0] == one.texts[0]]
    unfamiliar = model.are_unfamiliar([one.image for one, _ in known]) if known else []
    known = [pair for pair, is_strange in zip(known, unfamiliar, strict=True) if not is_strange]
    checked.skipped += len(batch) - len(known)
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
            suggestions = tuple(dict.fromkeys(caption.text for caption in what.captions))
            found = Contradiction(
                label=one.texts[0], where=one.where, line=one.line, cosine=round(cosine, 4), suggestions=suggestions
            )
            checked.contradictions.append(found)


class _TrainingWords(NamedTuple):
    """Words of a model's training captions, in the singular: all common words, and those that name a concept."""

    common: frozenset[str]
    names: frozenset[str]

    def name_a_concept(self, words: set[str]) -> bool:
        """Return whether all words are known, and at least one of them names a concept."""
        return words <= self.common and bool(words & self.names)


def _training_words(model: ImageTextModel) -> _TrainingWords:
    """Return the words of a model's training captions. Both sets are empty if the model has no list of these words, so
    that no label is judged.
    """
    numbers = None if model.folder is None else read_tag_model(model.folder)
    if numbers is None:
        return _TrainingWords(frozenset(), frozenset())
    counted = zip(numbers.words, numbers.counts, numbers.tag_counts, strict=True)
    names = {singular(word) for word, count, as_tag in counted if as_tag <= _MAX_TAG_SHARE * count}
    return _TrainingWords(
        common=frozenset(singular(word) for phrase in numbers.words for word in phrase.split()), names=frozenset(names)
    )


def is_in_vocabulary(model: ImageTextModel, text: str) -> bool:
    """Return whether the model probably knows all words of a text.

    The text must have one to eight words of at most three tokens each, and at least one letter.
    """
    words = words_of_name(text).split()
    if not 0 < len(words) <= _MAX_WORDS or not any(any(letter.isalpha() for letter in word) for word in words):
        return False
    return all(len(model.tokenizer.encode(word)) <= _MAX_PIECES for word in words)


def interpolate_limit(limits: Sequence[tuple[float, ...]], share: float) -> float:
    """Interpolate the cosine limit at which the given fraction of correct names is reported.

    Args:
        limits: `MatchParameters.label_limits`, by increasing fraction.
        share: Fraction of correct names that are reported, from 0 to 1.

    Raises:
        UserError: If the fraction is outside the measured range, or the model has no measurements.
    """
    if not limits:
        raise UserError("this model has no calibrated lint threshold; use -c icons")
    shares, cosines = zip(*limits, strict=True)
    if not shares[0] <= share <= shares[-1]:
        raise UserError(f"--false-alarms must be from {shares[0]:g} to {shares[-1]:g}, got {share:g}")
    return float(np.interp(share, shares, cosines))
