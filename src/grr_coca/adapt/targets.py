"""Regression targets of images: the words and the base embeddings of their captions, in reduced dimensions.

Shapes: N images, P pairs, C distinct captions, M some of them, E embedding width, V words, W = V + E, R directions, K
columns.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from grr_coca.common.shapes import Bool, Float, Int
from grr_coca.infer.adapted.descriptors import unit
from grr_coca.infer.adapted.words import Vocabulary, WordWeights

MAX_WORDS = 20_000
MAX_DIRECTIONS = 768
_DENSE = 1_200
"""All principal directions are computed exactly if the number of images or of dimensions is at most this number."""
_WHITENING, _FLOOR = 0.25, 0.1
"""Settings for scaling the directions. `_FLOOR` times the mean variance is added to the variance of each direction,
and the direction is divided by this sum to the power of `_WHITENING`. Words that occur in nearly all captions thus
count for less. Both numbers were chosen by cross-validation on the training pairs of three domains.
"""


@dataclass(frozen=True)
class Captions:
    """Captions of some images.

    Attributes:
        texts: Distinct captions, C.
        embeddings: Base embeddings of the distinct captions, C E.
        owners: Image of each pair, as an index, in ascending order.
        text_ids: Caption of each pair, as an index of `texts`.
    """

    texts: tuple[str, ...]
    embeddings: Float[np.ndarray, "C E"]
    owners: Int[np.ndarray, " P"]
    text_ids: Int[np.ndarray, " P"]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return int(self.owners.max(initial=-1)) + 1

    @cached_property
    def _shares(self) -> WordWeights:
        """Weight of each caption in the mean over its image's captions, as a sparse matrix with one row per image."""
        counts = np.bincount(self.owners)
        return WordWeights(self.text_ids, (1 / counts)[self.owners].astype(np.float32), np.cumsum(counts))

    @property
    def first_of_images(self) -> Int[np.ndarray, " N"]:
        """First caption of each image, as a row of `texts`."""
        return self.text_ids[np.searchsorted(self.owners, np.arange(self.num_images))]

    def texts_of(self, image: int) -> list[str]:
        """Return the captions of an image."""
        return [self.texts[number] for number in self.text_ids[self.owners == image].tolist()]

    def mean_of_images(self, rows: Float[np.ndarray, "C K"]) -> Float[np.ndarray, "N K"]:
        """Return, for each image, the mean of the rows that belong to its captions."""
        return self._shares.times(rows)

    def sum_of_captions(self, rows: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "C K"]:
        """Return the product of rows with the transpose of the matrix that `mean_of_images` applies."""
        return self._shares.transposed(len(self.texts)).times(rows)

    def subset(self, images: Int[np.ndarray, " n"]) -> "Captions":
        """Return the captions of the images at some ascending indices, and renumber the images. All texts are kept."""
        number = np.full(self.num_images, -1)
        number[images] = np.arange(len(images))
        kept = number[self.owners] >= 0
        return Captions(self.texts, self.embeddings, number[self.owners[kept]], self.text_ids[kept])


class TargetSpace:
    """Space of the regression targets, with its principal directions.

    Attributes:
        captions: Captions of the images.
        vocabulary: Vocabulary of the captions.
        text_weight: Weight of the text embedding relative to the words, as a ratio of squared lengths.
        text_mean: Mean of the base's text embeddings over all pairs, E.
        directions: Principal directions of the targets, V+E R.
        mean: Mean target of the images, along the directions, R.
        rows: Targets of the images along the directions, minus the mean, N R.
        whitening: Factor that scales each direction, R.

    Args:
        captions: Captions of the images.
        vocabulary: Vocabulary of the captions.
        text_weight: Weight of the text embedding relative to the words, as a ratio of squared lengths.
    """

    def __init__(self, captions: Captions, vocabulary: Vocabulary, text_weight: float) -> None:
        self.captions, self.vocabulary, self.text_weight = captions, vocabulary, text_weight
        self.text_mean = captions.embeddings[captions.text_ids].mean(axis=0)
        self._weighed = vocabulary.weigh(captions.texts)
        self._centred = unit(captions.embeddings - self.text_mean)
        self._factors = _factors(self._weighed, text_weight)
        self.directions, variances = self._principal()
        rows = captions.mean_of_images(self.project(self.directions))
        self.mean = rows.mean(axis=0)
        self.rows = rows - self.mean
        self.whitening = ((variances + _FLOOR * variances.mean()) ** -_WHITENING).astype(np.float32)

    def project(self, directions: Float[np.ndarray, "W K"]) -> Float[np.ndarray, "C K"]:
        """Project the targets of all distinct captions onto directions."""
        words, embedding = directions[: len(self.vocabulary)], directions[len(self.vocabulary) :]
        found = self._weighed.times(words) + np.float32(np.sqrt(self.text_weight)) * (self._centred @ embedding)
        return found * self._factors

    def without_words(self, is_known: Bool[np.ndarray, " V"], texts: Int[np.ndarray, " M"]) -> Float[np.ndarray, "M R"]:
        """Project the targets of some captions onto the principal directions, without their unknown words.

        Args:
            is_known: Mask of the words of the vocabulary that are known.
            texts: Indices of the captions.
        """
        weighed = _drop_unknown_words(_select_rows(self._weighed, texts), is_known)
        words, embedding = self.directions[: len(self.vocabulary)], self.directions[len(self.vocabulary) :]
        found = weighed.times(words)
        found += np.float32(np.sqrt(self.text_weight)) * (self._centred[texts] @ embedding)
        return found * _factors(weighed, self.text_weight)

    def words_in_captions_of(self, images: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " V"]:
        """Return a mask of the words that occur in the captions of some images."""
        is_of = np.zeros(self.captions.num_images, bool)
        is_of[images] = True
        texts = np.unique(self.captions.text_ids[is_of[self.captions.owners]])
        known = np.zeros(len(self.vocabulary), bool)
        known[_select_rows(self._weighed, texts).ids] = True
        return known

    def plain(self, texts: Int[np.ndarray, " M"]) -> Float[np.ndarray, "M E"]:
        """Return the base's text embeddings of some captions, given by index, minus `text_mean`, with length 1."""
        return self._centred[texts]

    def _principal(self) -> tuple[Float[np.ndarray, "W R"], Float[np.ndarray, " R"]]:
        """Return the principal directions of the image targets, and the variance along each direction."""
        num_images, width = self.captions.num_images, len(self.vocabulary) + self._centred.shape[1]
        if min(num_images, width) <= _DENSE:
            return _principal_of(self._dense())
        random = np.random.default_rng(0).standard_normal((width, MAX_DIRECTIONS), np.float32)
        mean = self.transposed(np.full((num_images, 1), 1 / num_images, np.float32))[:, 0]

        def times(directions: np.ndarray) -> np.ndarray:
            return self.captions.mean_of_images(self.project(directions)) - mean @ directions

        def back(rows: np.ndarray) -> np.ndarray:
            return self.transposed(rows) - np.outer(mean, rows.sum(axis=0))

        basis = random  # randomized subspace iteration (Halko, Martinsson and Tropp 2011)
        for _ in range(2):
            basis = _orthonormal(back(_orthonormal(times(basis))))
        inner, variances = _principal_of(times(basis), is_centred=True)
        return np.ascontiguousarray(basis @ inner), variances

    def transposed(self, rows: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "W K"]:
        """Multiply rows by the transposed matrix of image targets from the left: `targets.T @ rows`."""
        weighted = self.captions.sum_of_captions(rows) * self._factors
        words = self._weighed.transposed(len(self.vocabulary)).times(weighted)
        return np.concatenate([words, np.float32(np.sqrt(self.text_weight)) * (self._centred.T @ weighted)])

    def _dense(self) -> Float[np.ndarray, "N W"]:
        texts = np.repeat(np.arange(len(self.captions.texts)), np.diff(self._weighed.ends, prepend=0))
        words = np.zeros((len(self.captions.texts), len(self.vocabulary)), np.float32)
        words[texts, self._weighed.ids] = self._weighed.weights
        rows = np.concatenate([words, np.float32(np.sqrt(self.text_weight)) * self._centred], axis=1)
        return self.captions.mean_of_images(rows * self._factors)


def _orthonormal(rows: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N k"]:
    """Return an orthonormal basis of the columns, computed from their Gram matrix.

    With many rows, this is much faster than a QR decomposition.
    """
    squares, vectors = np.linalg.eigh((rows.T @ rows).astype(np.float64))
    kept = squares > 1e-7 * squares[-1]
    return rows @ (vectors[:, kept] / np.sqrt(squares[kept])).astype(np.float32)


def _principal_of(
    rows: Float[np.ndarray, "N K"], is_centred: bool = False
) -> tuple[Float[np.ndarray, "K R"], Float[np.ndarray, " R"]]:
    """Return at most `MAX_DIRECTIONS` principal directions of rows, as columns, and the variance along each.

    They are computed from the smaller of the two Gram matrices.
    """
    rows = rows.astype(np.float64)
    rows = rows if is_centred else rows - rows.mean(axis=0)
    is_wide = rows.shape[1] > len(rows)
    squares, vectors = np.linalg.eigh(rows @ rows.T if is_wide else rows.T @ rows)
    kept = np.flatnonzero(squares > 1e-9 * squares[-1])[::-1][:MAX_DIRECTIONS] if squares[-1] > 0 else np.arange(1)
    directions = unit(vectors[:, kept].T @ rows).T if is_wide else vectors[:, kept]
    return np.ascontiguousarray(directions, np.float32), (squares[kept] / len(rows)).astype(np.float32)


def _factors(weighed: WordWeights, text_weight: float) -> Float[np.ndarray, "M 1"]:
    """Return the factors that scale the target of each text to length 1.

    The part for words has length 1 before scaling, or length 0 if the text contains no word of the vocabulary.
    """
    has_words = np.diff(weighed.ends, prepend=0) > 0
    return (1 / np.sqrt(np.maximum(has_words + text_weight, 1e-9))).astype(np.float32)[:, None]


def _select_rows(weighed: WordWeights, texts: Int[np.ndarray, " M"]) -> WordWeights:
    counts = np.diff(weighed.ends, prepend=0)
    starts, kept = weighed.ends - counts, counts[texts]
    ends = np.cumsum(kept, dtype=np.int64)
    positions = np.repeat(starts[texts] - (ends - kept), kept) + np.arange(int(kept.sum()))
    return WordWeights(weighed.ids[positions], weighed.weights[positions], ends)


def _drop_unknown_words(weighed: WordWeights, is_known: Bool[np.ndarray, " V"]) -> WordWeights:
    """Drop unknown words, and rescale the weights of each text's remaining words to length 1."""
    counts = np.diff(weighed.ends, prepend=0)
    texts = np.repeat(np.arange(len(counts)), counts)
    kept = is_known[weighed.ids]
    ids, weights, texts = weighed.ids[kept], weighed.weights[kept], texts[kept]
    lengths = np.sqrt(np.bincount(texts, np.square(weights), minlength=len(counts)))
    ends = np.cumsum(np.bincount(texts, minlength=len(counts)))
    return WordWeights(ids, (weights / lengths[texts]).astype(np.float32), ends.astype(np.int64))
