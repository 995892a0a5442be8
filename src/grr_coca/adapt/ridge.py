"""Kernel ridge regression with predictions for held-out images, and logistic regression.

The kernel ridge regression is exact, or uses the Nyström method for many images.

Shapes: N images, F features, M landmarks, R targets, S samples.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from grr_coca.common.shapes import Bool, Float, Int
from grr_coca.infer.adapted.adaptation import gaussian

MAX_EXACT = 6_000
"""Maximum number of images for inverting the kernel matrix. The time grows with the cube of this number, and the memory
with its square.
"""
NUM_LANDMARKS = 3_000
_BLOCK = 4_096
_SMALLEST = 1e-6
"""Minimum eigenvalue of the landmarks' kernel matrix, as a fraction of the largest eigenvalue. Directions with smaller
eigenvalues are dropped."""


@runtime_checkable
class Ridge(Protocol):
    """Kernel ridge regression that is fitted to all images.

    Attributes:
        landmarks: Indices of the images from whose kernel values predictions are computed.
    """

    landmarks: Int[np.ndarray, " M"]

    def dual(self, targets: Float[np.ndarray, "N R"]) -> Float[np.ndarray, "M R"]:
        """Return the coefficients that a prediction multiplies by the kernel values of the landmarks."""

    def predict_held_out(
        self, targets: Float[np.ndarray, "N R"], folds: Int[np.ndarray, " N"]
    ) -> Float[np.ndarray, "N R"]:
        """Predict the targets of each fold's images as a fit on all other folds would, without fitting again."""


def fit(features: Float[np.ndarray, "N F"], width: float, penalty: float, max_exact: int = MAX_EXACT) -> Ridge:
    """Fit all images: exactly if there are at most `max_exact`, otherwise by the Nyström method.

    Args:
        features: Features of images.
        width: Factor that multiplies squared distances in the Gaussian kernel.
        penalty: Ridge penalty, above 0.
        max_exact: Maximum number of images for an exact fit.
    """
    if len(features) <= max_exact:
        return ExactRidge(features, width, penalty)
    chosen = np.sort(np.random.default_rng(0).choice(len(features), NUM_LANDMARKS, replace=False))
    return NystroemRidge(features, width, penalty, chosen)


class ExactRidge:
    """Exact ridge regression, which inverts the Cholesky factor of the kernel matrix with the penalty added.

    The arguments are those of `fit`.
    """

    def __init__(self, features: Float[np.ndarray, "N F"], width: float, penalty: float) -> None:
        self.landmarks = np.arange(len(features))
        kernel = gaussian(features, features, width)
        kernel[np.diag_indices(len(kernel))] += np.float32(penalty)
        self._root = _inverse_root(kernel)
        self._solved: tuple[np.ndarray, np.ndarray] | None = None

    def dual(self, targets: Float[np.ndarray, "N R"]) -> Float[np.ndarray, "N R"]:
        """Return the coefficients; see `Ridge`. They are cached for the next call with the same array."""
        if self._solved is None or self._solved[0] is not targets:
            self._solved = targets, self._root.T @ (self._root @ targets)
        return self._solved[1]

    def predict_held_out(
        self, targets: Float[np.ndarray, "N R"], folds: Int[np.ndarray, " N"]
    ) -> Float[np.ndarray, "N R"]:
        """Predict held-out images; see `Ridge`.

        In a fit without the images of a fold, the residuals of these images solve a linear system. The matrix of the
        system is the fold's block of the inverse kernel matrix, and its right-hand side contains the fold's dual
        variables in the full fit (Cook 1977, for single rows).
        """
        dual = self.dual(targets)
        predicted = np.array(targets, np.float32)
        for rows in rows_of(folds):
            own = self._root[:, rows]
            predicted[rows] -= np.linalg.solve(own.T @ own, dual[rows])
        return predicted


_SMALL = 128


def _inverse_root(matrix: Float[np.ndarray, "N N"]) -> Float[np.ndarray, "N N"]:
    """Return the inverse of the lower Cholesky factor of a positive definite matrix.

    The Gram matrix of the result is the inverse of the given matrix. The recursion halves the matrix and does nearly
    all work in matrix products, which is five times as fast as `np.linalg.inv`.
    """
    if len(matrix) <= _SMALL:
        return np.linalg.inv(np.linalg.cholesky(matrix))
    half = len(matrix) // 2
    root = np.zeros_like(matrix)
    root[:half, :half] = first = _inverse_root(matrix[:half, :half])
    below = matrix[half:, :half] @ first.T
    root[half:, half:] = second = _inverse_root(matrix[half:, half:] - below @ below.T)
    root[half:, :half] = -(second @ below) @ first
    return root


class NystroemRidge:
    """Ridge regression on kernel features at landmarks (Williams and Seeger 2001).

    Args:
        features: Features of images.
        width: Factor that multiplies squared distances in the Gaussian kernel.
        penalty: Ridge penalty.
        landmarks: Indices of the images whose kernel functions form the basis.
    """

    def __init__(
        self, features: Float[np.ndarray, "N F"], width: float, penalty: float, landmarks: Int[np.ndarray, " M"]
    ) -> None:
        self.landmarks = landmarks
        centres = features[landmarks]
        values, vectors = np.linalg.eigh(gaussian(centres, centres, width).astype(np.float64))
        kept = values > _SMALLEST * values[-1]
        self._root = (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)
        self._penalty = penalty
        self._rows = np.empty((len(features), int(kept.sum())), np.float32)
        for start in range(0, len(features), _BLOCK):
            part = slice(start, start + _BLOCK)
            self._rows[part] = gaussian(features[part], centres, width) @ self._root
        self._gram = self._product(self._rows)

    def dual(self, targets: Float[np.ndarray, "N R"]) -> Float[np.ndarray, "M R"]:
        """Return the coefficients; see `Ridge`."""
        return self._root @ self._solve(self._gram, self._rows.T @ targets)

    def predict_held_out(
        self, targets: Float[np.ndarray, "N R"], folds: Int[np.ndarray, " N"]
    ) -> Float[np.ndarray, "N R"]:
        """Predict held-out images; see `Ridge`."""
        predicted = np.empty_like(targets, np.float32)
        together = self._rows.T @ targets
        for rows in rows_of(folds):
            mine = self._rows[rows]
            predicted[rows] = mine @ self._solve(self._gram - self._product(mine), together - mine.T @ targets[rows])
        return predicted

    def _product(self, rows: Float[np.ndarray, "N M"]) -> Float[np.ndarray, "M M"]:
        total = np.zeros((rows.shape[1],) * 2)
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            total += part.T @ part
        return total

    def _solve(self, gram: Float[np.ndarray, "M M"], right: Float[np.ndarray, "M R"]) -> Float[np.ndarray, "M R"]:
        matrix = gram + self._penalty * np.eye(len(gram))
        return np.linalg.solve(matrix, right.astype(np.float64)).astype(np.float32)


# --- Folds


def rows_of(folds: Int[np.ndarray, " N"]) -> list[Int[np.ndarray, " _"]]:
    """Return the row indices of each fold. Rows with a negative fold are in none of them."""
    return [np.flatnonzero(folds == fold) for fold in range(int(folds.max(initial=-1)) + 1)]


def make_folds(groups: Int[np.ndarray, " N"], count: int) -> Int[np.ndarray, " N"]:
    """Divide images into folds of about equal size, with all images of a group in the same fold.

    The result is the fold of each image.

    Args:
        groups: Group of each image.
        count: Maximum number of folds. If there are fewer groups, each group becomes a fold.
    """
    names, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled = np.zeros(min(count, len(names)), np.int64)
    fold_of = np.zeros(len(names), np.int64)
    for group in order:
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
    return fold_of[inverse]


def links_of(images: Int[np.ndarray, " P"], groups: Int[np.ndarray, " P"]) -> list[tuple[int, int]]:
    """Return a pair of indices for each membership: the first image of the same group, and the image.

    Args:
        images: Image of each membership.
        groups: Group of each membership. An image may be in several groups.
    """
    first: dict[int, int] = {}
    return [
        (first.setdefault(group, image), image) for image, group in zip(images.tolist(), groups.tolist(), strict=True)
    ]


def group_linked(num_images: int, links: Iterable[tuple[int, int]]) -> Int[np.ndarray, " N"]:
    """Group images that are linked, directly or through a chain, and return the first image of each image's group."""
    parents = list(range(num_images))

    def find(image: int) -> int:
        while parents[image] != image:
            parents[image] = parents[parents[image]]
            image = parents[image]
        return image

    for one, other in links:
        first, second = sorted((find(one), find(other)))
        parents[second] = first
    return np.array([find(image) for image in range(num_images)])


def group_near_equal(
    rows: Float[np.ndarray, "N F"], others: Float[np.ndarray, "N D"], least: float, other_least: float
) -> Int[np.ndarray, " N"]:
    """Group near-equal images, which must share a fold, and return the first image of each image's group.

    Args:
        rows: Unit vectors by which candidate pairs are found.
        others: Unit vectors by which candidate pairs are accepted.
        least: Minimum dot product of `rows` for a candidate pair.
        other_least: Minimum dot product of `others` for accepting a candidate pair.
    """

    def links() -> Iterator[tuple[int, int]]:
        for start in range(0, len(rows), 1024):
            first, second = np.nonzero(rows[start : start + 1024] @ rows.T >= least)
            first += start
            below = first < second
            first, second = first[below], second[below]
            for part in range(0, len(first), 65_536):
                one, other = first[part : part + 65_536], second[part : part + 65_536]
                is_equal = np.einsum("nd,nd->n", others[one], others[other]) >= other_least
                yield from zip(one[is_equal].tolist(), other[is_equal].tolist(), strict=True)

    return group_linked(len(rows), links())


def logistic_weights(columns: Float[np.ndarray, "S F"], is_right: Bool[np.ndarray, " S"]) -> Float[np.ndarray, " _"]:
    """Fit a logistic curve by Newton's method with a small penalty. Return the weight of each column, then the offset.

    A column that does not vary gets weight 0. An example is the size of the library if all libraries have the same
    size.

    Args:
        columns: Features of each sample.
        is_right: Whether the sample is right.
    """
    mean, spread = columns.mean(axis=0), columns.std(axis=0)
    varies = spread > 1e-6
    scaled = np.where(varies, (columns - mean) / np.where(varies, spread, 1), 0)
    rows = np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)
    penalty = np.diag([1.0] * columns.shape[1] + [0.0])
    weights = np.zeros(rows.shape[1])
    for _ in range(50):
        shares = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        slope = rows.T @ (shares - is_right) + penalty @ weights
        curvature = (rows.T * (shares * (1 - shares)).clip(min=1e-6)) @ rows + penalty
        step = np.linalg.solve(curvature, slope)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    slopes = np.where(varies, weights[:-1] / np.where(varies, spread, 1), 0)
    return np.append(slopes, weights[-1] - slopes @ mean)
