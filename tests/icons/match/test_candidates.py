"""Matches: evidence, ranking and probabilities, on galleries worked out by hand; maps and tables."""

import json

import numpy as np
import pytest
from support import hide_packages

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError
from grr_coca_icons.commands.match import _finding_line
from grr_coca_icons.match.candidates import Pairs, PictureSet, match_pictures
from grr_coca_icons.match.icon_lookup import IconLookup
from grr_coca_icons.match.icon_map import (
    DoubtfulEntry,
    UnknownIcon,
    check_map,
    decided_matches,
    format_map,
    read_map,
)
from grr_coca_icons.match.match_numbers import (
    FEATURES,
    IMAGE_FEATURES,
    IMAGE_ONLY,
    MatchParameters,
    MatchWeights,
    ProbabilityCurve,
    match_numbers,
)

WIDTH = 16


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def gallery(prefix: str, names: list[str], vectors: np.ndarray, *, seed: int = 0, has_names: bool = True) -> PictureSet:
    """A gallery whose names have vectors of their own: equal words, equal vectors."""
    words = [(name.replace("-", " ").removesuffix(" filled"),) for name in names]
    random = {word: np.random.default_rng([seed, *word.encode()]).normal(size=WIDTH) for (word,) in words}
    return PictureSet(
        names=[f"{prefix}:{name}" for name in names],
        words=words,
        concepts=[f"{prefix}:{own[0]}" for own in words],
        vectors=unit(vectors),
        name_vectors=unit(np.array([random[word] for (word,) in words])) if has_names else np.empty((0, 0)),
        is_seen=np.zeros(len(names), bool),
        is_filled=np.array([name.endswith("filled") for name in names]),
    )


@pytest.fixture
def random():
    return np.random.default_rng(5)


CURVE = ProbabilityCurve(per_score=8.0, per_lead=2.0, offset=-7.0, least=0.3)
BY_PICTURE = MatchWeights(weights={"picture": 1.0}, seen=CURVE, unseen=CURVE)


@pytest.mark.parametrize("has_names", [True, False])
def test_order_of_evidence_does_not_change_matches(random, monkeypatch, has_names):
    pictures = random.normal(size=(12, WIDTH))
    source = gallery("one", [f"a-{n}" for n in range(12)], pictures, has_names=has_names)
    target = gallery("two", [f"a-{n % 5}-b" for n in range(12)], pictures[::-1] + 0.5, seed=1, has_names=has_names)
    weights = {name: 0.3 + 0.1 * number for number, name in enumerate(FEATURES)}
    numbers = MatchWeights(weights=weights, seen=CURVE, unseen=CURVE)
    before = match_pictures(source, target, numbers)
    for module in ("candidates", "match_numbers"):
        monkeypatch.setattr(f"grr_coca_icons.match.{module}.FEATURES", FEATURES[::-1])
    assert match_pictures(source, target, numbers) == before


def test_nearest_image_comes_first_with_any_name(random):
    pictures = random.normal(size=(40, WIDTH))
    source = gallery("one", [f"a{n}" for n in range(40)], pictures)
    order = random.permutation(40)
    target = gallery("two", [f"b{n}" for n in range(40)], pictures[order] + 0.05 * random.normal(size=(40, WIDTH)))
    matches = match_pictures(source, target)
    assert [match.best.row for match in matches] == np.argsort(order).tolist()
    assert [match.name for match in matches] == source.names
    assert all(match.best.probability is None for match in matches), "nothing was fitted"


@pytest.mark.parametrize("has_names", [True, False])
def test_icon_has_the_same_matches_by_itself_as_with_all(random, has_names):
    """By itself, only its candidates are compared with the other icons of its set."""
    pictures = random.normal(size=(900, WIDTH))
    source = gallery("one", [f"a{n}" for n in range(60)], pictures[:60], has_names=has_names)
    target = gallery("two", [f"b{n}" for n in range(900)], pictures + 0.5 * random.normal(size=(900, WIDTH)))
    numbers = MatchWeights(weights={"picture": 1.0, "taken": 0.5, "spelling": 0.1}, seen=CURVE, unseen=CURVE)
    every = match_pictures(source, target, numbers)
    for row in (0, 17, 59):
        [found] = match_pictures(source, target, numbers, rows=[row])
        assert [one.name for one in found.nearest] == [one.name for one in every[row].nearest]
        scores = [one.score for one in found.nearest]
        assert scores == pytest.approx([one.score for one in every[row].nearest], abs=2e-4)
    assert match_pictures(source, target, numbers, rows=[]) == []


def test_matching_number_ranks_first_in_its_series(random):
    """Pictures of digits look alike: `h-2` is `heading-2`, even if `heading-3` looks more like it."""
    pictures = random.normal(size=(4, WIDTH))
    source = gallery("one", ["h-2", "h", "h-7"], pictures[[0, 0, 0]])
    vectors = np.stack([pictures[0] + 0.2 * pictures[1], pictures[0] + 0.1 * pictures[1], pictures[2], pictures[3]])
    target = gallery("two", ["heading-2", "heading-3", "bin-2", "bin"], vectors)
    numbers = MatchWeights(weights={"picture": 1.0, "spelling": 1e-6}, seen=CURVE, unseen=CURVE)
    found = match_pictures(source, target, numbers)
    assert [match.nearest[0].name for match in found] == ["two:heading-2", "two:heading-3", "two:heading-3"]
    assert found[0].nearest[0].probability == found[1].nearest[0].probability


def test_styles_of_one_concept_are_one_candidate(random):
    pictures = random.normal(size=(3, WIDTH))
    source = gallery("one", ["bin-filled", "bin"], pictures[[0, 0]])
    vectors = np.stack([pictures[0] + 0.5 * pictures[1], pictures[0], pictures[1], pictures[2]])
    target = gallery("two", ["trash", "trash-filled", "home", "star"], vectors)
    filled, outline = match_pictures(source, target, n=5)
    assert [one.name for one in filled.candidates][:1] == ["two:trash-filled"]
    assert [one.name for one in outline.candidates][:1] == ["two:trash"], "in the style of the source"
    assert outline.best.score == filled.best.score
    assert len(filled.candidates) == len(outline.candidates) == 3


def test_evidence_matches_its_names(random):
    source = gallery("one", ["trash", "house", "gone"], random.normal(size=(3, WIDTH)))
    target = gallery("two", ["trash", "home", "trash-can"], random.normal(size=(3, WIDTH)))
    weights = MatchWeights(weights=dict.fromkeys(FEATURES, 1.0), seen=CURVE, unseen=CURVE)
    columns, features, bounds = Pairs(source, target, weights).features(np.array([0, 1]))
    assert columns.tolist() == [0, 1, 2, 0, 1, 2]
    assert bounds == [0, 3, 6]
    column = {name: features[:, FEATURES.index(name)] for name in FEATURES}
    cosines = source.vectors @ target.vectors.T
    assert np.allclose(column["picture"], cosines[:2].ravel(), atol=1e-6)
    assert np.allclose(column["names"], (source.name_vectors @ target.name_vectors.T)[:2].ravel(), atol=1e-6)
    assert column["same_name"].tolist() == [1, 0, 0, 0, 0, 0]
    assert column["spelling"][0] == 1
    assert column["spelling"][2] > column["spelling"][1] > 0
    assert column["missing_words"].tolist() == [0, -1, 0, 0, 0, 0], "the target has no word house"
    assert column["extra_words"].tolist() == [0, 0, 0, -1, 0, -0.5]
    rivals = np.array([[np.delete(cosines[:, to], one).max() for to in range(3)] for one in range(2)])
    assert np.allclose(column["taken"], np.minimum(0, cosines[:2] - rivals).ravel(), atol=1e-6)


@pytest.mark.parametrize("at_a_time", [1, 7, 10_000])
def test_rivals_are_the_same_however_many_are_compared_at_a_time(random, monkeypatch, at_a_time):
    names = [f"t{n // 2}" + ("-filled" if n % 2 else "") for n in range(30)]
    source = gallery("one", names, random.normal(size=(30, WIDTH)))
    target = gallery("two", [f"b{n}" for n in range(9)], random.normal(size=(9, WIDTH)))
    weights = MatchWeights(weights=dict.fromkeys(IMAGE_FEATURES, 1.0), seen=CURVE, unseen=CURVE)
    _, expected, _ = Pairs(source, target, weights).features(np.arange(30))
    monkeypatch.setattr("grr_coca_icons.match.candidates._PRODUCTS", at_a_time * len(target))
    _, found, _ = Pairs(source, target, weights).features(np.arange(30))
    assert np.allclose(found, expected)
    cosines = source.vectors @ target.vectors.T
    others = np.array(
        [[np.delete(cosines[:, to], [one // 2 * 2, one // 2 * 2 + 1]).max() for to in range(9)] for one in range(30)]
    )
    assert np.allclose(found[:, 2], np.minimum(0, cosines - others).ravel(), atol=1e-6)


def test_unlikely_icon_has_no_match_but_nearest_icons(random):
    base = np.eye(WIDTH)
    source = gallery("one", ["a", "b"], base[:2])
    target = gallery("two", ["c", "d", "e"], base[[0, 5, 6]])
    first, second = match_pictures(source, target, BY_PICTURE)
    assert first.best.name == "two:c"
    assert first.best.probability > 0.9
    assert second.best is None
    assert second.candidates == ()
    assert len(second.nearest) == 3


def test_probabilities_of_a_curve():
    curve = ProbabilityCurve(per_score=2.0, per_lead=1.0, offset=-1.0, least=0.0)
    found = curve.probabilities(np.array([1.0, 0.0]), np.array([0.5, -1.0]))
    assert np.allclose(found, [1 / (1 + np.exp(-1.5)), 1 / (1 + np.exp(2.0))])


def test_without_names_names_are_not_compared(random):
    pictures = random.normal(size=(4, WIDTH))
    source = gallery("one", ["x", "y", "z", "w"], pictures, has_names=False)
    target = gallery("two", ["x", "y", "z", "w"], pictures[::-1], has_names=False)
    weights = MatchWeights(weights=dict.fromkeys(FEATURES, 1.0), seen=CURVE, unseen=CURVE)
    assert [match.best.name for match in match_pictures(source, target, weights)] == [
        "two:w",
        "two:z",
        "two:y",
        "two:x",
    ]


def test_names_are_compared_by_a_package_of_the_extra(random, monkeypatch):
    source = gallery("one", ["a", "b"], random.normal(size=(2, WIDTH)))
    weights = MatchWeights(weights=dict.fromkeys(FEATURES, 1.0), seen=CURVE, unseen=CURVE)
    hide_packages(monkeypatch, "rapidfuzz")
    with pytest.raises(UserError, match=r"comparing names needs rapidfuzz; run: .* -m pip install"):
        match_pictures(source, source, weights)
    assert match_pictures(source, source, BY_PICTURE)


def test_empty_target_raises(random):
    source = gallery("one", ["a"], random.normal(size=(1, WIDTH)))
    empty = gallery("two", ["a"], random.normal(size=(1, WIDTH)))
    object.__setattr__(empty, "names", [])
    with pytest.raises(UserError, match="the target has no images"):
        match_pictures(source, empty)


def test_parameters_next_to_the_weights_report_corruption(tmp_path):
    assert match_numbers(tmp_path) is None
    numbers = MatchParameters(with_names=BY_PICTURE, without_names=IMAGE_ONLY, seen_sets=("ph",))
    (tmp_path / "match.json").write_text(json.dumps(to_dict(numbers)))
    assert match_numbers(tmp_path) == numbers
    content = to_dict(numbers)
    content["with_names"]["weights"] = {"colour": 1.0}
    (tmp_path / "match.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"match\.json.*'weights' must be finite numbers with keys among picture"):
        match_numbers(tmp_path)


# --- Maps


@pytest.fixture
def sides(random):
    base = np.eye(WIDTH)
    source = gallery("one", ["bin", "house", "moon"], base[:3])
    target = gallery("two", ["trash", "home", "night", "star"], base[:4])
    return source, target


def test_map_survives_a_round_trip(tmp_path):
    icons = {"one:bin": "two:trash", "one:a": None}
    path = tmp_path / "map.json"
    path.write_text(format_map(icons))
    assert read_map(path) == icons
    assert json.loads(path.read_text())["format"] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("flat.json", '{"one:bin": "two:trash", "one:a": null}'),
        ("table.csv", "from,to\none:bin,two:trash\none:a,\n"),
        ("table.tsv", "one:bin\ttwo:trash\none:a\t\n"),
    ],
)
def test_flat_objects_and_tables_are_maps(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    assert read_map(path) == {"one:bin": "two:trash", "one:a": None}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1]", "not a map of icons"),
        ("a.json", "{}", "not a map of icons"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", '{"format": 9, "icons": {}}', "unsupported map format 9; this version supports 1"),
        ("a.json", '{"format": 1, "icons": {"a": 3}}', "'a': expected the name of an icon, or null"),
        ("a.csv", "one\n", "expected two columns"),
        ("a.csv", "a,b\rc,d\n", "not a table"),
    ],
)
def test_invalid_map_reports_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_map(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def lookups(sides) -> list[IconLookup]:
    return [IconLookup(side) for side in sides]


def test_decided_entries_are_unchanged(sides):
    found = decided_matches(
        {"one:bin": "two:star", "one:house": None, "other:x": "two:home"}, *lookups(sides), "map.json"
    )
    assert found[0].best.name == "two:star"
    assert found[1].candidates == ()
    assert all(match.is_decided for match in found.values())
    assert set(found) == {0, 1}


def test_map_of_another_pair_of_sets_raises(sides):
    with pytest.raises(
        UserError, match=r"map\.json: this map is for other icons: none of its 1 icons is in one .*mdi:home → ph:house"
    ):
        decided_matches({"mdi:home": "ph:house"}, *lookups(sides), "map.json")
    with pytest.raises(UserError, match=r"unknown icon 'two:trahs'; did you mean 'two:trash'"):
        decided_matches({"one:bin": "two:trahs"}, *lookups(sides), "map.json")


def test_table_with_unknown_names_or_unlikely_pairs_is_reported(sides):
    table = {
        "one:bin": "two:trash",
        "house": "night",
        "one:moon": None,
        "one:mon": "two:night",
        "bin": "two:hom",
    }
    wrong, missing, unknown, misspelled = check_map(table, *lookups(sides), BY_PICTURE)
    assert (wrong.icon, wrong.equivalent, wrong.likelier) == ("house", "night", "two:home")
    assert wrong.probability <= 0.1 < 0.5 <= wrong.likelier_probability
    assert (missing.icon, missing.equivalent, missing.likelier) == ("one:moon", None, "two:night")
    assert missing.probability is None
    assert unknown == UnknownIcon(
        icon="one:mon", equivalent="two:night", name="one:mon", nearest="one:moon", sets=("one",)
    )
    assert misspelled == UnknownIcon(
        icon="bin", equivalent="two:hom", name="two:hom", nearest="two:home", sets=("two",)
    )


def test_all_entries_of_one_icon_are_checked(sides):
    table = {"one:bin": "two:night", "bin": "two:trash"}
    (wrong,) = check_map(table, *lookups(sides), BY_PICTURE)
    assert (wrong.icon, wrong.equivalent, wrong.likelier) == ("one:bin", "two:night", "two:trash")


def test_each_finding_is_one_line():
    entry = {"icon": "house", "equivalent": "night"}
    likelier = {"likelier": "two:home", "likelier_probability": 0.92}
    findings = [
        DoubtfulEntry(**entry, probability=0.01, **likelier),
        DoubtfulEntry(icon="one:moon", equivalent=None, probability=None, **likelier),
        UnknownIcon(**entry, name="two:night", nearest="two:nigh", sets=("two",)),
        UnknownIcon(**entry, name="two:night", nearest=None, sets=("two", "three")),
    ]
    assert list(map(_finding_line, findings)) == [
        "house → night: looks wrong (1%); two:home is more likely (92%)",
        "one:moon → none: two:home shows it (92%)",
        "house → night: unknown icon 'two:night'; did you mean 'two:nigh'?",
        "house → night: unknown icon 'two:night' in two, three",
    ]


def test_without_numbers_only_names_are_checked(sides):
    (finding,) = check_map({"one:bin": "two:star", "one:hause": "two:home"}, *lookups(sides), None)
    assert (finding.icon, finding.name, finding.nearest) == ("one:hause", "one:hause", "one:house")
