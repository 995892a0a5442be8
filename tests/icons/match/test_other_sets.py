"""Icons in the other sets of one library."""

import numpy as np

from grr_coca_icons.match.candidates import PictureSet
from grr_coca_icons.match.match_numbers import MatchParameters, MatchWeights, ProbabilityCurve
from grr_coca_icons.match.other_sets import MAX_SETS, CrossSetMatcher

CURVE = ProbabilityCurve(per_score=20.0, per_lead=0.0, offset=-14.0, least=0.2)
BY_PICTURE = MatchWeights(weights={"picture": 1.0}, seen=CURVE, unseen=CURVE)
NUMBERS = MatchParameters(with_names=BY_PICTURE, without_names=BY_PICTURE, seen_sets=())


def pictures(**vectors: list[float]) -> PictureSet:
    """Icons by `set__name`, with embeddings that are made to have unit length."""
    names = [name.replace("__", ":") for name in vectors]
    rows = np.array(list(vectors.values()), np.float32)
    return PictureSet(
        names=names,
        words=[() for _ in names],
        concepts=names,
        vectors=rows / np.linalg.norm(rows, axis=1, keepdims=True),
        name_vectors=np.empty((0, 0)),
        is_seen=np.zeros(len(names), bool),
        is_filled=np.zeros(len(names), bool),
    )


def equivalent_names(found: PictureSet) -> dict[str, list[str]]:
    return {
        name: [found.names[one.row] for one in equivalents]
        for name, equivalents in zip(found.names, CrossSetMatcher(found, NUMBERS).all_equivalents(), strict=True)
    }


def test_equivalents_come_from_other_sets_most_likely_first():
    library = pictures(
        a__house=[1, 0, 0],
        a__home=[1, 0.01, 0],
        b__cottage=[1, 0.5, 0],
        b__tree=[0, 1, 0],
        c__house=[1, 0.1, 0],
        c__fish=[0, 0, 1],
    )
    found = equivalent_names(library)
    assert found["a:house"] == ["c:house", "b:cottage"]
    assert found["c:fish"] == [], "nothing is likely there"
    assert found["b:tree"] == []
    assert found["c:house"] == ["a:home", "b:cottage"]
    matcher = CrossSetMatcher(library, NUMBERS)
    assert [[library.names[one.row] for one in matcher.equivalents_of(image)] for image in range(6)] == [
        *found.values()
    ]


def test_probabilities_are_those_of_a_match_of_the_two_sets():
    library = pictures(a__x=[1, 0], b__x=[1, 0.2])
    (first,), (second,) = CrossSetMatcher(library, NUMBERS).all_equivalents()
    cosine = float(library.vectors[0] @ library.vectors[1])
    assert first.row == 1
    assert abs(first.probability - 1 / (1 + np.exp(14 - 20 * cosine))) < 1e-3
    assert second.row == 0


def test_searches_the_sets_with_the_most_similar_images():
    far = {f"s{number}__x": [1.0, number / 10] for number in range(MAX_SETS + 5)}
    found = equivalent_names(pictures(own__x=[1.0, 0.0], **far))["own:x"]
    assert found == [f"s{number}:x" for number in range(len(found))]
    assert 0 < len(found) <= MAX_SETS


def test_one_set_has_no_others():
    assert equivalent_names(pictures(a__x=[1, 0], a__y=[0, 1])) == {"a:x": [], "a:y": []}
