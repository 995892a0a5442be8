"""Linear probe: logistic regression on the image embeddings of a frozen model (arXiv 2103.00020, section 3.2).

Shapes: N images, E embedding width.
"""

from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import UserError, require_extra

STRENGTHS = tuple(float(c) for c in np.logspace(-4, 6, 11))
"""Candidate values of the inverse regularization strength."""
MAX_ITERATIONS = 1000
HELD_OUT_ONE_IN = 5


class LinearProbe(NamedTuple):
    """Predicted classes of the test images, N, and the inverse regularization strength that was best in validation."""

    predicted: np.ndarray
    strength: float


def linear_probe(train: np.ndarray, targets: np.ndarray, test: np.ndarray, seed: int = 0) -> LinearProbe:
    """Fit logistic regression to features, N × E.

    Held-out training images select the regularization strength; then the probe is fitted to all training images.

    Raises:
        UserError: If scikit-learn is not installed, the training images have fewer than two classes, or no class has
            five training images.
    """
    require_extra("probe", "a linear probe")
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(targets)) < 2:
        raise UserError("a probe needs training images of at least two classes")
    fit, held_out = split_for_validation(targets, seed)
    scores = {}
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(train[fit], targets[fit])
        scores[strength] = float((model.predict(train[held_out]) == targets[held_out]).mean())
    best = max(STRENGTHS, key=lambda strength: (scores[strength], -strength))
    model = LogisticRegression(C=best, max_iter=MAX_ITERATIONS).fit(train, targets)
    return LinearProbe(model.predict(test), best)


def split_for_validation(targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the images for fitting and of those for validation, which are a fifth of every class.

    All images of a class with fewer than five images are used for fitting.

    Raises:
        UserError: If no class has five images, so that no image remains for validation.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for target in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == target))
        held_out.append(members[: len(members) // HELD_OUT_ONE_IN])
    validation = np.sort(np.concatenate(held_out))
    if not len(validation):
        raise UserError(
            f"no class has {HELD_OUT_ONE_IN} or more training images, so none can be held out for "
            "validation; add images"
        )
    return np.setdiff1d(np.arange(len(targets)), validation), validation
