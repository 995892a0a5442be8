"""Tests of no difference, and the correction for testing several."""

import numpy as np
from jaxtyping import Float
from scipy import stats

from grr_coca.study.statistics.paired import Numbers, Samples, standard_error

MOST_FLIPS = 2**16
"""Sign patterns that are all gone through, up to 16 seeds; of more, so many are drawn."""


def sign_flip_p(values: Samples) -> Numbers:
    """Two-sided p of the sign-flip test of the mean (Fisher, The Design of Experiments, 1935, section 21).

    If the arms do not differ, each seed's difference is as likely to have the other sign. p is the share of all 2^S
    sign patterns whose mean is at least as far from zero as the one that was found. Nothing is assumed of the shape of
    the distribution but its symmetry. The smallest p of S seeds is 2 / 2^S.
    """
    if values.shape[-1] < 2:  # which scipy refuses: both patterns are as far from zero
        return np.ones(values.shape[:-1])
    found = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        axis=-1,
        n_resamples=MOST_FLIPS,
        batch=256,
        rng=np.random.default_rng(0),
    )
    return np.minimum(found.pvalue, 1.0)


def t_test_p(values: Samples) -> Numbers:
    """Two-sided p of the one-sample t test (Student, Biometrika 6, 1908); NaN for a single seed, 1 if all are zero."""
    mean, error = values.mean(axis=-1), standard_error(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(mean / error), max(values.shape[-1] - 1, 1))
    return np.where((mean == 0) & (error == 0), 1.0, p)


def holm(p_values: Float[np.ndarray, "*studies E"]) -> Float[np.ndarray, "*studies E"]:
    """p of each of E endpoints, adjusted so that the chance of any false finding among them stays below the level.

    Holm, Scandinavian Journal of Statistics 6, 1979: the k-th smallest is multiplied by E − k + 1, and none is smaller
    than the one before. It holds whatever the endpoints have to do with each other. An endpoint that was not measured
    (NaN) stays one of the E.
    """
    order = np.argsort(p_values, axis=-1)  # NaN last
    count = p_values.shape[-1]
    ordered = np.take_along_axis(p_values, order, axis=-1) * np.arange(count, 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(ordered, axis=-1), 1.0)
    result = np.empty_like(adjusted)
    np.put_along_axis(result, order, adjusted, axis=-1)
    return result
