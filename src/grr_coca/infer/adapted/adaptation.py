"""Parameters of an adapted model, and their storage. The parameters map the base model's embeddings to vectors.

An image's vector has two parts. The first part predicts the words of the image's captions: kernel ridge regression maps
the base's embedding and the descriptors of the image to the words of its captions (TF-IDF) and their text embeddings.
The second part is the base's image embedding, minus the mean of the domain. In a text's vector, the actual words and
embedding of the text take the place of the predictions. All vectors have length 1, and the dot product of two vectors
is their similarity.

Shapes: B images or texts, E embedding width of the base, D width of a descriptor, F = E + D features, N fitted
images, M landmarks (images from which predictions are computed), V words, W = V + E, K width of a vector's first part,
L width of its second part, Z = K + L, C distinct captions of the fitted images.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json
from grr_coca.common.shapes import Float, UInt8
from grr_coca.infer.adapted import descriptors as rules_of_images
from grr_coca.infer.adapted import words as rules_of_words
from grr_coca.infer.adapted.descriptors import unit
from grr_coca.infer.adapted.words import Vocabulary
from grr_coca.model.checkpoint_files import ADAPTED, ADAPTED_FILES

_, ARRAYS, FEATURES = ADAPTED_FILES
MAX_NUMBERS = 512
"""Maximum width of a vector, K + L."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Hyperparameters of a fit.

    Attributes:
        width: Factor of squared distances in the Gaussian kernel, exp(-width · d²).
        penalty: Ridge penalty λ.
        text_weight: Weight of the base's text embedding relative to the words, as a ratio of squared lengths.
        plain_share: Weight of the base's own similarity relative to the predicted similarity.
    """

    width: float = 0.4
    penalty: float = 0.2
    text_weight: float = 0.2
    plain_share: float = 0.6


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Parameters of a logistic function that yields the probability that a caption is exactly right.

    Attributes:
        weights: Weights of the caption's score, of its lead over the next candidate, and of the kernel value of the
            nearest fitted image.
        offset: Logit if all three of these features are 0.
    """

    weights: tuple[float, float, float]
    offset: float

    def probabilities(self, evidence: Float[np.ndarray, "B 3"]) -> Float[np.ndarray, " B"]:
        """Return the probability for each row of features."""
        logits = evidence @ np.array(self.weights) + self.offset
        return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))


@dataclass(frozen=True, kw_only=True)
class Captioning:
    """Settings for choosing captions, selected because they yield the most correct captions on held-out images.

    Attributes:
        composed: Whether the candidates also include captions that join the beginning of one near caption to the end of
            another near caption at a shared word.
        beams: Number of captions from the decoder's beam search to include in the candidates.
        log_prob_weight: Weight of a caption's summed log-probability from the decoder.
        confidence: Parameters for the probability that a caption is exactly right. None if unknown.
    """

    composed: bool
    beams: int
    log_prob_weight: float
    confidence: Confidence | None


@dataclass(frozen=True, kw_only=True)
class AdaptedHeader:
    """Content of `adapted.json`.

    Attributes:
        base: Name of the base model.
        base_fingerprint: Fingerprint of the base model.
        word_rules: Version of the rules in `grr_coca.infer.adapted.words`.
        image_rules: Version of the rules in `grr_coca.infer.adapted.descriptors`.
        num_images: Number of fitted images.
        num_landmarks: Number of images from which predictions are computed. With the Nyström method, this is less than
            `num_images`.
        split: Widths of the two parts of a vector, K and L. L is 0 if the base does not process images.
        values: Hyperparameters of the fit.
        captioning: Settings for choosing captions.
        logit_scale: Inverse temperature of similarities.
        words: Vocabulary.
        captions: Distinct captions of the fitted images.
        figures: Metrics from the report, by the names of the setting and of the metric.
    """

    base: str
    base_fingerprint: str
    word_rules: int
    image_rules: int
    num_images: int
    num_landmarks: int
    split: tuple[int, int]
    values: Hyperparameters
    captioning: Captioning
    logit_scale: float
    words: tuple[str, ...]
    captions: tuple[str, ...]
    figures: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Content of `adapted.safetensors`.

    Attributes:
        rarities: Inverse document frequencies, V.
        image_mean: Mean of the base's image embeddings, E.
        text_mean: Mean of the base's text embeddings, E.
        plain_map: Principal directions of the base's embeddings, E L.
        word_map: Map from the words and the embedding of a text to the first part of its vector, (V + E) K.
        word_offset: Offset subtracted after `word_map`, K.
        score_map: Map from words to the space in which predictions are compared when captions are ranked, V K.
        score_offset: Offset subtracted after `score_map`, K.
        score_gram: Matrix that yields the squared length of a prediction, measured in the space of words, K K.
        dual: Map from kernel values to the first part of a vector, M K.
        caption_vectors: Vectors of the distinct captions, C K+L.
    """

    rarities: np.ndarray
    image_mean: np.ndarray
    text_mean: np.ndarray
    plain_map: np.ndarray
    word_map: np.ndarray
    word_offset: np.ndarray
    score_map: np.ndarray
    score_offset: np.ndarray
    score_gram: np.ndarray
    dual: np.ndarray
    caption_vectors: np.ndarray


class Adaptation:
    """Parameters of an adapted model, ready for use.

    Args:
        header: Scalars, words and captions.
        arrays: Matrices.
        landmarks: Base embeddings and descriptors of the landmarks, M F.
    """

    def __init__(self, header: AdaptedHeader, arrays: Arrays, landmarks: Float[np.ndarray, "M F"]) -> None:
        self.header = header
        self.vocabulary = Vocabulary(header.words, arrays.rarities)
        self.arrays = Arrays(**{name: np.asarray(value, np.float32) for name, value in vars(arrays).items()})
        rows, width = np.asarray(landmarks, np.float32), len(self.arrays.image_mean)
        self._landmarks = self.features(rows[:, :width], rows[:, width:])
        self._squares = np.square(self._landmarks).sum(axis=1)
        share = header.values.plain_share
        self._lengths = np.float32(np.sqrt(1 / (1 + share))), np.float32(np.sqrt(share / (1 + share)))

    @property
    def size(self) -> int:
        """Width of a vector, K + L."""
        return sum(self.header.split)

    @property
    def is_without_images(self) -> bool:
        """Whether another encoder embeds images in place of the base."""
        return self.header.split[1] == 0

    def features(
        self, embeddings: Float[np.ndarray, "B E"], described: Float[np.ndarray, "B D"]
    ) -> Float[np.ndarray, "B F"]:
        """Join base embeddings and descriptors into features."""
        return np.concatenate([unit(embeddings - self.arrays.image_mean), described], axis=1)

    def image_vectors(
        self, embeddings: Float[np.ndarray, "B E"], described: Float[np.ndarray, "B D"]
    ) -> tuple[Float[np.ndarray, "B Z"], Float[np.ndarray, " B"]]:
        """Return the vectors of images, and the kernel value of the landmark nearest to each image.

        Args:
            embeddings: Image embeddings of the base.
            described: Descriptors of the images.
        """
        features = self.features(embeddings, described)
        kernel = gaussian(features, self._landmarks, self.header.values.width, squares=self._squares)
        predicted, plain = unit(kernel @ self.arrays.dual), self.plain_vectors(embeddings)
        return np.concatenate([self._lengths[0] * predicted, self._lengths[1] * plain], axis=1), kernel.max(axis=1)

    def plain_vectors(self, embeddings: Float[np.ndarray, "B E"]) -> Float[np.ndarray, "B L"]:
        """Return the second parts of image vectors, before they are weighted.

        They are the base's image embeddings minus the mean of the domain, projected to L axes and scaled to length 1.
        """
        return unit((embeddings - self.arrays.image_mean) @ self.arrays.plain_map)

    def text_vectors(self, texts: Sequence[str], embeddings: Float[np.ndarray, "B E"]) -> Float[np.ndarray, "B Z"]:
        """Return the vectors of texts. If a text has no word in the vocabulary, its vector depends only on its
        embedding.

        Args:
            texts: Texts to convert.
            embeddings: Text embeddings of the base.
        """
        centred = unit(embeddings - self.arrays.text_mean)
        first = unit(
            target_vectors(self.vocabulary, texts, centred, self.arrays.word_map, self.header.values.text_weight)
            - self.arrays.word_offset
        )
        second = unit(centred @ self.arrays.plain_map)
        return np.concatenate([self._lengths[0] * first, self._lengths[1] * second], axis=1)

    def image_queries(self, vectors: Float[np.ndarray, "B Z"]) -> Float[np.ndarray, "B Z"]:
        """Convert the vectors of images to queries that find similar images.

        If the base processes images, the queries use only the base's embeddings.
        """
        first = 0 if self.is_without_images else self.header.split[0]
        return unit(np.concatenate([np.zeros_like(vectors[:, :first]), vectors[:, first:]], axis=1))

    def word_scores(
        self, vectors: Float[np.ndarray, "B Z"], texts: Sequence[Sequence[str]]
    ) -> list[Float[np.ndarray, " _"]]:
        """Score texts for each image, by the approximate cosine between the image's predicted words and a text's words.

        Args:
            vectors: Vectors of the images.
            texts: Texts to score for each image.

        Returns:
            One array per image, with one score per text.
        """
        first = vectors[:, : self.header.split[0]] / self._lengths[0]
        lengths = np.sqrt(np.einsum("bk,kl,bl->b", first, self.arrays.score_gram, first).clip(min=1e-12))
        found = []
        for image, length, own in zip(first, lengths, texts, strict=True):
            mapped = self.vocabulary.weigh(own).times(self.arrays.score_map) - self.arrays.score_offset
            found.append(mapped @ image / length)
        return found


def gaussian(
    first: Float[np.ndarray, "B F"],
    second: Float[np.ndarray, "M F"],
    width: float,
    squares: Float[np.ndarray, " M"] | None = None,
) -> Float[np.ndarray, "B M"]:
    """Compute the Gaussian kernel exp(-width · d²) for all pairs of a row of `first` and a row of `second`.

    Args:
        first: First rows of the pairs.
        second: Second rows of the pairs.
        width: Factor of the squared distance d².
        squares: Squared lengths of the rows of `second`, if they are known.
    """
    squares = np.square(second).sum(axis=1) if squares is None else squares
    kernel = first @ second.T
    kernel *= 2 * np.float32(width)
    kernel -= np.float32(width) * np.square(first).sum(axis=1)[:, None]
    kernel -= np.float32(width) * squares
    return np.exp(np.minimum(kernel, 0, out=kernel), out=kernel)


def target_vectors(
    vocabulary: Vocabulary,
    texts: Sequence[str],
    centred: Float[np.ndarray, "B E"],
    projection: Float[np.ndarray, "W K"],
    text_weight: float,
) -> Float[np.ndarray, "B K"]:
    """Project the target vectors of texts: [weights of words, √text_weight · text embedding], scaled to length 1.

    Args:
        vocabulary: Known words.
        texts: Texts.
        centred: The base's text embeddings minus their mean, scaled to length 1.
        projection: Projection matrix.
        text_weight: Weight of the text embedding.
    """
    weighed = vocabulary.weigh(texts)
    has_words = np.diff(weighed.ends, prepend=0) > 0
    split = len(vocabulary)
    found = weighed.times(projection[:split]) + np.float32(np.sqrt(text_weight)) * (centred @ projection[split:])
    return found / np.sqrt(np.maximum(has_words + text_weight, 1e-9)).astype(np.float32)[:, None]


def write_adaptation(
    folder: Path,
    header: AdaptedHeader,
    arrays: Arrays,
    features: Float[np.ndarray, "N F"],
    digests: UInt8[np.ndarray, "N 32"],
) -> None:
    """Write an adaptation to a folder that already contains its base model.

    Args:
        folder: Folder of the model.
        header: Content of `adapted.json`.
        arrays: Content of `adapted.safetensors`, stored in half precision.
        features: Base embeddings and descriptors of all images, landmarks first.
        digests: SHA-256 of each image file.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    import json

    from safetensors.numpy import save

    halves = {name: np.ascontiguousarray(value, np.float16) for name, value in vars(arrays).items()}
    # in fp32, because the exported web page uses the same values
    halves["rarities"] = np.ascontiguousarray(arrays.rarities, np.float32)
    (folder / ARRAYS).write_bytes(save(halves))
    stored = {"features": np.ascontiguousarray(features, np.float16), "digests": np.ascontiguousarray(digests)}
    (folder / FEATURES).write_bytes(save(stored))
    (folder / ADAPTED).write_bytes(json.dumps(to_dict(header), ensure_ascii=False).encode())


def read_adapted_header(folder: Path) -> AdaptedHeader:
    """Read `adapted.json` of an adapted model.

    Raises:
        UserError: If the file is missing or corrupt, or was written with rules that this version does not know.
    """
    path = folder / ADAPTED
    header = from_dict(AdaptedHeader, read_json(path), str(path))
    known = (rules_of_words.RULES, rules_of_images.VERSION)
    if (header.word_rules, header.image_rules) != known:
        raise UserError(
            f"{path}: rules for words and images have versions {header.word_rules} and {header.image_rules}, but this "
            f"program supports {known[0]} and {known[1]}; run `grr-coca adapt` again"
        )
    return header


def read_adaptation(folder: Path) -> Adaptation:
    """Read the adaptation of the model in a folder.

    Raises:
        UserError: If a file is missing or corrupt, the files do not match, or they were written with rules that this
            version does not know.
    """
    header = read_adapted_header(folder)
    stored = read_arrays(folder / ARRAYS)
    missing = Arrays.__dataclass_fields__.keys() - stored.keys()
    if missing:
        raise UserError(f"{folder / ARRAYS}: corrupt: '{sorted(missing)[0]}' is missing; run `grr-coca adapt` again")
    arrays = Arrays(**{name: stored[name] for name in Arrays.__dataclass_fields__})
    landmarks = read_arrays(folder / FEATURES, header.num_landmarks).get("features", np.zeros((0, 0)))
    sizes = (len(header.words), len(header.captions), header.num_landmarks, header.num_landmarks, sum(header.split))
    found = (len(arrays.rarities), len(arrays.caption_vectors), len(landmarks), len(arrays.dual))
    if sizes != (*found, arrays.caption_vectors.shape[-1]):
        raise UserError(f"{folder / ARRAYS}: does not match {ADAPTED}; run `grr-coca adapt` again")
    return Adaptation(header, arrays, landmarks)


def read_features(folder: Path) -> dict[bytes, Float[np.ndarray, " F"]]:
    """Read the features of all fitted images, and return them by the SHA-256 of each image file.

    Raises:
        UserError: If the file is missing or corrupt.
    """
    stored = read_arrays(folder / FEATURES)
    digests, features = stored.get("digests", ()), stored.get("features", ())
    if not 0 < len(digests) == len(features):
        raise UserError(f"{folder / FEATURES}: corrupt: digests and features do not match; run `grr-coca adapt` again")
    return {bytes(digest): row for digest, row in zip(digests, features, strict=True)}


def read_arrays(path: Path, num_rows: int | None = None) -> dict[str, Any]:
    """Read all arrays in a safetensors file.

    Args:
        path: The file.
        num_rows: Number of rows to read of each array, from the first. If None or 0, all rows are read.

    Raises:
        UserError: If the file is missing or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name)[: num_rows or None] for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run `grr-coca adapt` again") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: corrupt, or cannot be read ({error}); run `grr-coca adapt` again") from error


def file_digest(content: bytes) -> bytes:
    """Return the SHA-256 of an image file."""
    return hashlib.sha256(content).digest()
