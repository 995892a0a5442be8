"""Assign several words with probabilities to an image, from likely captions and from the words of training captions.

The words and parameters were fitted to one model by `scripts/fit_tags.py`. They are stored next to the model's weights
in `tags.json`. The embeddings of the words are stored in `tags.safetensors`, because computing them would take as long
as captioning hundreds of drawings. The probability that users would assign a word to an image is a logistic function of
the features in `TAG_FEATURES`.

Shapes: N words of the vocabulary, K candidates of one image, E embedding width.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json
from grr_coca.common.shapes import Float, Int
from grr_coca.data.tokenizer import FUNCTION_WORDS, singular
from grr_coca.infer.generate.captions import Caption
from grr_coca.infer.generate.options import GenerationOptions
from grr_coca.model.checkpoint_files import TAG_VECTORS, TAGS

TAG_FEATURES = ("cosine", "captions", "tags", "beams", "unlisted", "constant")
"""Features of a word for an image:

- `cosine`: cosine of the word's and the image's embeddings.
- `captions`: logarithm of the number of training captions that are equal to the word.
- `tags`: logarithm of the number of those captions that follow the first caption of their image, as tags do.
- `beams`: logarithm of the probability of the beams that contain the word.
- `unlisted`: 1 for a word that is in a beam but not in the vocabulary, whose first three features are unknown; else 0.
- `constant`: 1.
"""

_BEAMS = 5
"""Number of captions of each image whose words are candidates."""
_NEAREST = 60
"""Maximum number of candidates from the vocabulary for each image."""
_UNLISTED_COSINE = 0.3
"""Value for an unknown cosine. The choice does not matter, because the fitted weight of `unlisted` offsets it."""
_MIN_PROBABILITY = 1e-3
_ROUNDING = 1e-6
"""Margin that exceeds the rounding errors of a logit."""
_MIN_LETTERS = 3
MAX_TAGS = 20


class Tag(NamedTuple):
    """A word or short phrase for an image. `probability` is the probability that users would assign it to the image."""

    text: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class TagModel:
    """Vocabulary of tags, and the parameters of their probabilities, fitted to one model.

    Attributes:
        words: The vocabulary.
        counts: For each word, the number of training captions that are equal to the word.
        tag_counts: For each word, the number of those captions that follow the first caption of their image.
        weights: Weights of the features in `TAG_FEATURES`.
        fitted_on: Description in words of the images that the parameters were fitted to.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    tag_counts: tuple[int, ...]
    weights: tuple[float, ...]
    fitted_on: str

    def __post_init__(self) -> None:
        if not self.words or not len(self.words) == len(self.counts) == len(self.tag_counts):
            raise UserError("'words', 'counts' and 'tag_counts' must have the same length, and not be empty")
        if len(self.weights) != len(TAG_FEATURES):
            raise UserError(f"'weights' must have {len(TAG_FEATURES)} numbers: {', '.join(TAG_FEATURES)}")


def read_tag_model(folder: Path) -> TagModel | None:
    """Return the tag parameters of the model in a folder, or None if the model has no tags.

    Raises:
        UserError: If the file is corrupt.
    """
    path = folder / TAGS
    return from_dict(TagModel, read_json(path), str(path)) if path.exists() else None


def read_tag_vectors(folder: Path, num_words: int) -> Float[np.ndarray, "N E"] | None:
    """Return the stored embeddings of a model's words, or None if no embeddings are stored in the folder.

    Raises:
        UserError: If the file is corrupt, or the number of rows differs from the number of words.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / TAG_VECTORS
    try:
        vectors = load_file(path)["vectors"]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"{path}: corrupt, or cannot be read ({error}); install grr-coca again, or copy the model again"
        ) from error
    if vectors.ndim != 2 or len(vectors) != num_words:
        raise UserError(
            f"{path}: the shape is {vectors.shape}, but {TAGS} has {num_words:,} words; copy both files "
            "from the same model"
        )
    return vectors.astype(np.float32)


def write_tags(folder: Path, numbers: TagModel, vectors: Float[np.ndarray, "N E"]) -> None:
    """Write the tag parameters of a model, and the embeddings of its words in half precision, to the model's folder.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    from safetensors.numpy import save

    (folder / TAGS).write_text(json.dumps(to_dict(numbers)) + "\n", encoding="utf-8")
    (folder / TAG_VECTORS).write_bytes(save({"vectors": np.ascontiguousarray(vectors, np.float16)}))


def with_beams(options: GenerationOptions) -> GenerationOptions:
    """Return options that generate as many captions as tags need, with five beams unless another number is set.

    Raises:
        UserError: If captions are sampled.
    """
    if options.temperature is not None:
        raise UserError(
            "tags and temperature cannot be combined, because tags use the most likely captions; omit one of them"
        )
    beams = options.num_beams if options.num_beams > 1 else _BEAMS
    return replace(options, num_beams=beams, num_captions=max(options.num_captions, min(beams, _BEAMS)))


class Tagger:
    """Tagger that assigns words to images.

    Args:
        numbers: Tag parameters of the model.
        vectors: The model's embeddings of the words in the vocabulary, N E.
    """

    def __init__(self, numbers: TagModel, vectors: Float[np.ndarray, "N E"]) -> None:
        self._numbers, self._vectors = numbers, vectors
        self._weights = np.array(numbers.weights)

    def tags(
        self,
        embeddings: Float[np.ndarray, "B E"],
        captions: Sequence[Sequence[Caption]],
        count: int,
        min_probability: float = 0.0,
    ) -> list[tuple[Tag, ...]]:
        """Return the most likely distinct words of each image, at most `count`.

        Args:
            embeddings: Embeddings of the images.
            captions: Captions of each image from beam search; see `with_beams`.
            count: Maximum number of words for each image.
            min_probability: Minimum probability of a returned word. Omitting unlikely words halves the time.
        """
        candidates = self.candidates(embeddings, captions, min_probability)
        return [self._most_likely(*found, count, min_probability) for found in candidates]

    def _most_likely(
        self, words: list[str], features: Float[np.ndarray, "K 6"], count: int, min_probability: float
    ) -> tuple[Tag, ...]:
        probabilities = (1 / (1 + np.exp(-features @ self._weights))).tolist()
        found: dict[str, Tag] = {}
        for index in sorted(range(len(words)), key=probabilities.__getitem__, reverse=True):
            if len(found) == count or probabilities[index] < min_probability:
                break
            found.setdefault(to_singular(words[index]), Tag(words[index], probabilities[index]))
        return tuple(found.values())

    def candidates(
        self, embeddings: Float[np.ndarray, "B E"], captions: Sequence[Sequence[Caption]], min_probability: float = 0.0
    ) -> Iterator[tuple[list[str], Float[np.ndarray, "K 6"]]]:
        """Yield the candidate words of each image, and the features of each word.

        Words of the vocabulary that are less likely than `min_probability` are omitted unless they are in a beam.
        """
        cosines = embeddings @ self._vectors.T  # for the entire batch in one pass over the vectors of the vocabulary
        likely = cosines * self._weights[0] + self._prior_logits
        min_likely = self._min_contribution(min_probability)
        words: list[list[str]] = []
        indices: list[int] = []
        in_beams: list[float] = []
        for of_words, found in zip(likely, captions, strict=True):
            beams = _beam_words(found)
            beam_indices = [self._word_indices.get(word, -1) for word in beams]
            others = [index for index in _nearest_indices(of_words, min_likely) if index not in beam_indices]
            words.append([*beams, *map(self._numbers.words.__getitem__, others)])
            indices += beam_indices + others
            in_beams += [*beams.values(), *[0.0] * len(others)]
        counts = list(map(len, words))
        images = np.arange(len(words)).repeat(counts)
        features = self._features(cosines, images, np.array(indices, np.int64), np.array(in_beams))
        return zip(words, np.split(features, np.cumsum(counts)[:-1]), strict=True)

    def _features(
        self,
        cosines: Float[np.ndarray, "B N"],
        images: Int[np.ndarray, " K"],
        indices: Int[np.ndarray, " K"],
        in_beams: Float[np.ndarray, " K"],
    ) -> Float[np.ndarray, "K 6"]:
        """Return the features of words, given the image of each word and its index in the vocabulary (-1 if not
        included)."""
        is_known = indices >= 0
        features = np.ones((len(indices), len(TAG_FEATURES)))
        features[:, 0], features[:, 1:3] = cosines[images, indices], self._prior[indices]
        features[~is_known, :3] = _UNLISTED_COSINE, 0.0, 0.0
        features[:, 3] = np.log(in_beams + _MIN_PROBABILITY)
        features[:, 4] = ~is_known
        return features

    def _min_contribution(self, probability: float) -> float:
        """Return the minimum, rounded down, that the cosine and the counts of a word must contribute to its logit.

        With this minimum, a word that is in no beam has the given probability.
        """
        if probability <= 0:
            return -math.inf
        logit = math.log(probability / (1 - probability))
        return logit - self._weights[3] * math.log(_MIN_PROBABILITY) - self._weights[5] - _ROUNDING

    @cached_property
    def _prior_logits(self) -> Float[np.ndarray, " N"]:
        return self._prior @ self._weights[1:3]

    @cached_property
    def _word_indices(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self._numbers.words)}

    @cached_property
    def _prior(self) -> Float[np.ndarray, "N 2"]:
        return np.log1p(np.array([self._numbers.counts, self._numbers.tag_counts], np.float64).T)


@lru_cache(maxsize=1 << 14)  # cached, because the same words recur in many images
def to_singular(text: str) -> str:
    """Return a text with each word in the singular, so that "arrows" and "arrow" become equal."""
    return " ".join(map(singular, text.split()))


def _nearest_indices(likely: Float[np.ndarray, " N"], at_least: float) -> list[int]:
    """Return the indices of the `_NEAREST` highest values, without values below `at_least`, in ascending order of the
    index."""
    indices = np.flatnonzero(likely >= at_least)
    if len(indices) > _NEAREST:
        indices = np.sort(np.argpartition(-likely, _NEAREST - 1)[:_NEAREST])
    found: list[int] = indices.tolist()
    return found


def _beam_words(captions: Sequence[Caption]) -> dict[str, float]:
    """Map each caption, in lower case, and its words to the total probability of the beams that contain them.

    Words with fewer than three letters and function words, such as "with", are omitted.
    """
    found: dict[str, float] = {}
    for caption in captions:
        text = " ".join(caption.text.lower().split())
        words = [word for word in text.split() if len(word) >= _MIN_LETTERS and word not in FUNCTION_WORDS]
        for word in dict.fromkeys([text, *words] if text else []):
            found[word] = found.get(word, 0.0) + math.exp(math.fsum(caption.log_probs))
    return found
