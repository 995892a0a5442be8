"""Fit the relevance curve of an adapted model to queries with known answers.

The vector of each image is from an adaptation that did not use this image.

Shapes: N images, Q queries, H hits of a query, E embedding width.
"""

from collections.abc import Sequence

import numpy as np

from grr_coca.adapt.ridge import logistic_weights
from grr_coca_search.relevance import RelevanceCurve, hit_features

_HITS, _SAMPLE = 20, 300
"""Number of hits per query to which the curve is fitted, and number of library images with which the hits are compared.
"""
_FALSE_DENIALS = 0.05
"""Maximum fraction of queries with a correct image that may get the verdict `nothing`."""


def fit_relevance(
    images: np.ndarray,
    captions: np.ndarray,
    libraries: Sequence[np.ndarray],
    queries: Sequence[tuple[int, np.ndarray, np.ndarray]],
) -> dict[str, float] | None:
    """Fit the relevance curve, and return its parameters, which are the content of `relevance.json`.

    Args:
        images: Vectors of the images, each from an adaptation that did not use the image, N E.
        captions: Vectors of the captions that the model generated for the images, N E.
        libraries: Indices of the images in each library.
        queries: For each query, the index of its library, its vector, E, and a mask of the correct images in the
            library.

    Returns:
        The parameters, or None if there are fewer than `_HITS` correct or incorrect hits.
    """
    rows, rights, firsts = [], [], []
    random = np.random.default_rng(0)
    samples = [random.permutation(library)[:_SAMPLE] for library in libraries]
    for library, vector, is_right in queries:
        members = libraries[library]
        scores = images[members] @ vector
        best = np.argsort(-scores, kind="stable")[:_HITS]
        sample = samples[library]
        found = hit_features(
            vector, scores[best], images[sample], vector[None], captions[members[best]], captions[sample]
        )
        rows.append(found)
        rights.append(is_right[best])
        firsts.append((found[:10], bool(is_right[best][:10].any())))
    if not rows:
        return None
    columns, is_right = np.concatenate(rows), np.concatenate(rights)
    if min(is_right.sum(), (~is_right).sum()) < _HITS:
        return None
    weights = logistic_weights(columns, is_right)
    curve = RelevanceCurve(
        per_deviation=float(weights[0]),
        per_agreement=float(weights[1]),
        per_log_images=float(weights[2]),
        per_cosine=float(weights[3]),
        offset=float(weights[4]),
    )
    best_of = [float(curve.relevances(found).max()) for found, has_answer in firsts if has_answer]
    parameters = {name: float(value) for name, value in vars(curve).items()}
    parameters["nothing_below"] = float(np.quantile(best_of, _FALSE_DENIALS)) if best_of else 0.0
    return parameters
