"""The evidence that a hit is what was asked for."""

import numpy as np
import pytest

from grr_coca.search.answering.relevance import evidence

WIDTH = 128


def stands_out(cosines: list[float], score: float) -> float:
    """How far a hit of some score stands out from pictures of these cosines with the query."""
    vector = np.eye(WIDTH, dtype=np.float32)[0]
    sample = np.outer(cosines, vector).astype(np.float32)
    captions = np.eye(WIDTH, dtype=np.float32)[:1]
    return float(evidence(vector, np.array([score]), sample, captions, captions, captions)[0, 0])


def test_a_hit_does_not_stand_out_because_few_pictures_happen_to_be_alike():
    few = [0.230, 0.231, 0.229, 0.230, 0.230, 0.49]
    assert stands_out(few, 0.49) < 5


def test_in_a_library_of_many_the_deviation_is_that_of_the_library():
    many = np.random.default_rng(0).normal(0.2, 0.03, 4000).tolist()
    assert stands_out(many, 0.2 + 4 * 0.03) == pytest.approx(4, rel=0.1)
