"""Linear probe: a linear classifier on frozen image embeddings (arXiv 2103.00020, section 3.2).

Shapes: N images, E embedding width.
"""

from typing import Any, NamedTuple

import numpy as np

from grr_coca.errors import UserError
from grr_coca.extras import require_extra

STRENGTHS = tuple(float(c) for c in np.logspace(-4, 6, 11))
"""The inverse regularization strengths that are tried."""
MAX_ITERATIONS = 1000
VALIDATION_EVERY = 5


class LinearProbe(NamedTuple):
    """The predicted classes of the test images, N, and the strength that was best in validation."""

    predicted: np.ndarray
    strength: float


def linear_probe(train: np.ndarray, targets: np.ndarray, test: np.ndarray, seed: int = 0) -> LinearProbe:
    """Logistic regression on features, N × E. A part of the training images selects the strength; then all are fitted.

    Raises:
        UserError: scikit-learn is not installed, the training images have fewer than two classes, or no class has five
            of them.
    """
    regression = _logistic_regression()
    if len(np.unique(targets)) < 2:
        raise UserError("a probe needs training images of two classes or more")
    fit, held_out = split_for_validation(targets, seed)
    scores = {}
    for strength in STRENGTHS:
        model = regression(C=strength, max_iter=MAX_ITERATIONS).fit(train[fit], targets[fit])
        scores[strength] = float((model.predict(train[held_out]) == targets[held_out]).mean())
    best = max(STRENGTHS, key=lambda strength: (scores[strength], -strength))
    model = regression(C=best, max_iter=MAX_ITERATIONS).fit(train, targets)
    return LinearProbe(model.predict(test), best)


def split_for_validation(targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to fit on, and indices to validate on: a fifth of every class. Classes with fewer than five images are
    not split.

    Raises:
        UserError: no class has five images, so there is nothing to validate on.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for target in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == target))
        held_out.append(members[: len(members) // VALIDATION_EVERY])
    validation = np.sort(np.concatenate(held_out))
    if not len(validation):
        raise UserError(f"no class has {VALIDATION_EVERY} training images or more, so none can be kept for validation")
    return np.setdiff1d(np.arange(len(targets)), validation), validation


def _logistic_regression() -> Any:
    require_extra("probe", "a linear probe")
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression
