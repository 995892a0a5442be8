"""The random numbers of a sample: a stream of its own for each thing that is drawn, so that no draw changes another."""

from enum import IntEnum

import numpy as np

from grr_coca.data.order import SampleRef

MAX_REPLACEMENTS = 100
"""Samples that are tried to replace a bad one. If all of them are bad, hardly any sample of the source is good."""


class Stream(IntEnum):
    """What is drawn for a sample, by the number that ends the seed of the draw.

    A number is part of what a seed means: if it changed, a run could not be repeated.
    """

    STAND_IN = 1
    """The first sample that is tried in place of a bad one. The next ones have the numbers up to `MAX_REPLACEMENTS`."""
    CAPTION = STAND_IN + MAX_REPLACEMENTS
    """The caption of an image that has several."""
    PATCHES = 1000
    """The patches that are kept."""
    MIX = 1001
    """The sibling of an image, and how the two are mixed."""


def sample_rng(seed: int, ref: SampleRef, stream: int | None = None) -> np.random.Generator:
    """The random numbers of one visit of a sample.

    Args:
        seed: seed of the run.
        ref: the visit.
        stream: a number of `Stream`; None: the change of the image.
    """
    return np.random.default_rng((seed, *ref) if stream is None else (seed, *ref, stream))
