"""Features from which the relevance of a hit is computed, and the relevance curve."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from grr_coca.infer.load import load
from grr_coca.model.checkpoint_files import FOLDER, bundled_models
from grr_coca_search.relevance import RelevanceCurve, can_tell, curve_of, hit_features
from grr_coca_serve.page import FILES
from grr_coca_serve.site import RANKING

WIDTH = 128


def stands_out(cosines: list[float], score: float) -> float:
    """How far a hit of some score stands out from images of these cosines with the query."""
    vector = np.eye(WIDTH, dtype=np.float32)[0]
    sample = np.outer(cosines, vector).astype(np.float32)
    captions = np.eye(WIDTH, dtype=np.float32)[:1]
    return float(hit_features(vector, np.array([score]), sample, captions, captions, captions)[0, 0])


def test_few_similar_images_do_not_make_a_hit_stand_out():
    few = [0.230, 0.231, 0.229, 0.230, 0.230, 0.49]
    assert stands_out(few, 0.49) < 5


def test_large_library_uses_its_own_deviation():
    many = np.random.default_rng(0).normal(0.2, 0.03, 4000).tolist()
    assert stands_out(many, 0.2 + 4 * 0.03) == pytest.approx(4, rel=0.1)


def made(count: int, near: int = 0) -> np.ndarray:
    """Vectors in directions of their own, and some that are nearly the first."""
    vectors = np.eye(WIDTH, dtype=np.float32)
    alike = vectors[0] + 0.1 * vectors[count : count + near]
    return np.concatenate([vectors[:count], alike / np.linalg.norm(alike, axis=1, keepdims=True)])


@pytest.mark.parametrize(
    ("sample", "is_valid"),
    [
        (made(1), False),
        (made(4), False),
        (made(5), True),
        (made(4, near=2), False),
        (made(4, near=3), False),
        (made(10, near=8), True),
        (made(10, near=20), False),
    ],
)
def test_relevance_needs_enough_different_images(sample, is_valid):
    asked, others = np.eye(WIDTH, dtype=np.float32)[:1], np.eye(WIDTH, dtype=np.float32)[1:]
    assert can_tell(sample[0], sample, asked, others) == is_valid
    assert not can_tell(sample[0], sample, asked, asked), "all captions are the query"


def test_z_score_uses_the_lower_half_of_the_library():
    """Of what was asked for, a third of the library may be."""
    query, others = np.eye(WIDTH, dtype=np.float32)[0], np.eye(WIDTH, dtype=np.float32)[1:2]
    cosines = np.array([-0.02, -0.01, 0.0, 0.0, 0.01, 0.02], np.float32)

    def stands_out(matching: float) -> float:
        sample = np.outer(np.append(cosines, [matching] * 3), query)
        return float(hit_features(query, np.array([0.9]), sample, others, others, others)[0, 0])

    assert stands_out(0.9) == pytest.approx(stands_out(0.5))


@pytest.mark.filterwarnings("error")
def test_features_are_finite_if_all_captions_match():
    one = np.eye(WIDTH, dtype=np.float32)[:1]
    curve = RelevanceCurve(per_deviation=1, per_agreement=2, per_log_images=-0.5, offset=-5)
    for captions in (one, -one):
        assert 0 <= curve.relevances(hit_features(one[0], np.ones(1), one, one, captions, one))[0] < 1
    assert curve.relevances(np.array([[-1e4, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0]])).tolist() == pytest.approx([0, 1])


def test_relevance_falls_with_the_number_of_images():
    """The right hit among ten is as sure as one that stands out further among thousands."""
    query, others = np.eye(WIDTH, dtype=np.float32)[0], np.eye(WIDTH, dtype=np.float32)[1:2]
    found = [
        hit_features(query, np.array([0.5]), np.outer([0.1] * count, query), others, others, others)
        for count in (10, 4000)
    ]
    assert [row[0, 2] for row in found] == pytest.approx(np.log([10, 4000]))
    for name in bundled_models():
        curve = curve_of(FOLDER / name, load(name).config)
        assert curve.per_log_images < 0
        few, many = (curve.relevances(np.array([[6.0, 0.5, row[0, 2], 0.3]]))[0] for row in found)
        assert few > many


def test_few_successful_searches_get_no_match():
    """Measured on icons whose files are called as they are, and on the same icons with numbers for names."""
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "search_relevance.json"
    named, numbered = json.loads(path.read_text(encoding="utf-8"))["is_it_denied"]
    assert (named["files"], numbered["files"]) == ("names", "numbers")
    assert named["denied"] == 0
    assert numbered["denied"] <= 0.05
    assert min(named["absent_told"], numbered["absent_told"]) >= 0.6, "most queries without a correct hit get no match"


def test_page_does_not_define_ranking_numbers():
    code = "".join(path.read_text(encoding="utf-8") for path in FILES.glob("*.js"))
    assert set(re.findall(r"ranking\.(\w+)", code)) <= set(RANKING)
    assert not re.findall(r"MIN_RELEVANCE|MAX_BITS|WORD_WEIGHT", code)
