"""The corpus `scenes`: what the captions say is what the pictures show, and nothing leaks from split to split."""

import hashlib
import json
import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import icons
import numpy as np
import pytest
import scenes
from scenes import (
    FINE,
    LEVELS,
    RELATIONS,
    RGB,
    SHAPES,
    Scene,
    SceneCounts,
    Thing,
    shape_cover,
    split_scenes,
    without_positions,
)

from grr_coca.common.errors import UserError
from grr_coca.data.images import decode_image
from grr_coca.data.sources.open import open_source

COUNTS = SceneCounts(train=12, val=4, test=8, pictures=2)
SPLITS = ("train", "val", "test")
ALIGNED = 4
"""Pixels: things whose middles are no further apart stand beside or over each other."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return scenes.build(lambda *_: None, tmp_path_factory.mktemp("corpus") / "scenes", COUNTS)


def pairs(corpus: Path, split: str) -> list[tuple[str, np.ndarray]]:
    """Captions and pixels of a split."""
    source = open_source(str(corpus / f"{split}-*.tar"))
    found = [source[index] for index in range(len(source))]
    return [(pair.caption, np.asarray(decode_image(pair.image, pair.name)).astype(int)) for pair in found]


def middle(pixels: np.ndarray, colour: str) -> tuple[float, float]:
    """Middle of the box around all that has a colour: right, down."""
    rows, columns = np.nonzero(abs(pixels - np.array(RGB[colour])).sum(axis=2) == 0)
    return (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2


def step(distance: float) -> int:
    return 0 if abs(distance) <= ALIGNED else int(math.copysign(1, distance))


def test_a_caption_says_what_is_seen(corpus):
    seen = 0
    for split in SPLITS:
        for caption, pixels in pairs(corpus, split):
            first, second = caption.split()[1], caption.split()[-2]
            if first == second:
                continue  # of one colour, so that colours do not tell the two apart
            (right, down), (other_right, other_down) = middle(pixels, first), middle(pixels, second)
            relation = " ".join(caption.split()[3:-3])
            assert RELATIONS[relation] == (step(right - other_right), step(down - other_down)), caption
            seen += 1
    assert seen > 200


AREAS = {
    "square": 1,
    "circle": math.pi / 4,
    "diamond": 1 / 2,
    "cross": 5 / 9,
    "triangle": 1 / 2,
    "ring": math.pi * 3 / 16,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_its_area_around_its_middle(shape):
    cover = shape_cover(shape, (130, 90, 34)) / LEVELS
    assert cover.sum() == pytest.approx(AREAS[shape] * (2 * 34 / FINE) ** 2, rel=0.05)
    rows, columns = np.nonzero(cover)
    box = (130 - 34) // FINE, (130 + 34) // FINE, (90 - 34) // FINE, (90 + 34 - 1) // FINE
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == pytest.approx(box, abs=1)


def test_no_two_shapes_touch(corpus):
    for _, pixels in pairs(corpus, "test"):
        rows, columns = np.nonzero((pixels < 255).any(axis=2))
        inked = set(zip(rows.tolist(), columns.tolist(), strict=True))
        groups = 0
        while inked:
            groups += 1
            edge = [inked.pop()]
            while edge:
                row, column = edge.pop()
                near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & inked
                inked -= near
                edge += near
        assert groups == 2


def test_nothing_is_in_two_splits(corpus):
    pictures, captions, things = (defaultdict(set) for _ in range(3))
    for split, those in split_scenes(COUNTS).items():
        for caption, pixels in pairs(corpus, split):
            pictures[split].add(pixels.tobytes())
            captions[split].add(caption)
        assert captions[split] == {scene.caption for scene in those}
        things[split] = {scene.things for scene in those}
    for found in (pictures, captions, things):
        assert sum(map(len, found.values())) == len(set().union(*found.values()))
    assert len(pictures["train"]) == 12 * 8 * 2, "and no picture is there twice"


@pytest.mark.parametrize("split", SPLITS)
def test_two_things_have_all_their_scenes_in_one_split(split):
    relations = defaultdict(set)
    for scene in split_scenes(COUNTS)[split]:
        relations[scene.things].add(scene.relation)
    assert len(relations) == getattr(COUNTS, split)
    assert all(found == set(RELATIONS) for found in relations.values())


def test_every_thing_is_trained_on():
    by_split = split_scenes(SceneCounts())
    assert {thing for scene in by_split["train"] for thing in scene.things} == {
        thing for scenes_of_split in by_split.values() for scene in scenes_of_split for thing in scene.things
    }


def test_a_card_says_how_far_one_comes_without_positions(corpus):
    card = json.loads((corpus / "card.json").read_text())["test_without_positions"]
    assert card == without_positions(split_scenes(COUNTS)["test"])
    assert (card["captions"], card["differ_only_in_position"]) == (64, 64)
    assert (card["chance_R@1"], card["best_R@1"]) == (round(1 / 64, 6), 1 / 8)
    assert card["least_nats_a_caption"] == pytest.approx(math.log(8), abs=1e-4)
    assert (card["contrastive_batch"], card["least_contrastive_loss"]) == (64, card["least_nats_a_caption"])
    first, second, third = Thing("red", "ring"), Thing("red", "square"), Thing("blue", "ring")
    alone, couple = [Scene(first, second, "above")], [Scene(first, third, way) for way in ("above", "below")]
    found = without_positions(alone + couple)
    assert (found["differ_only_in_position"], found["best_R@1"]) == (2, round(2 / 3, 6))
    assert found["least_nats_a_caption"] == pytest.approx(2 / 3 * math.log(2), abs=1e-4)
    assert found["least_contrastive_loss"] == found["least_nats_a_caption"], "all three are in the one batch"
    assert "64 of the 64 captions" in (corpus / "card.md").read_text()


def test_the_least_contrastive_loss_is_what_random_batches_give():
    """Logits of a model that knows both things alone, in batches that are drawn."""
    test = split_scenes(SceneCounts())["test"]
    things = np.unique([str(scene.things) for scene in test], return_inverse=True)[1]
    rng = np.random.default_rng(0)
    drawn = [things[rng.permutation(len(things))[:128]] for _ in range(400)]
    losses = [np.log((batch[:, None] == batch[None]).sum(axis=1)).mean() for batch in drawn]
    found = without_positions(test)
    assert found["contrastive_batch"] == 128
    assert np.mean(losses) == pytest.approx(found["least_contrastive_loss"], abs=0.01)


def test_the_bytes_are_the_same_everywhere(corpus):
    found = hashlib.sha256((corpus / "card.json").read_bytes()).hexdigest()
    assert found == "4fcde58ed429e5ab1287d00e3a34680b3f6598d6fb2bf8c20f39fd4dfcc11a50"


def test_a_corpus_is_built_once_and_never_over_something_else(corpus, tmp_path):
    assert scenes.build(pytest.fail, corpus) == corpus
    (tmp_path / "notes.txt").touch()
    for card in (None, '{"name": "icons", "splits": {}}', '{"splits": {}}', "[]", "no card"):
        if card is not None:
            (tmp_path / "card.json").write_text(card)
        with pytest.raises(UserError, match="holds something else"):
            scenes.build(lambda *_: None, tmp_path)
    with pytest.raises(UserError, match=r"notes\.txt: is a file; give a new folder"):
        scenes.build(lambda *_: None, tmp_path / "notes.txt")


@pytest.mark.parametrize("build", [scenes.build, icons.build])
def test_the_current_folder_is_not_replaced(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="has no name of its own"):
        build(pytest.fail, Path())
    with pytest.raises(UserError, match="is the current folder, which cannot be replaced"):
        build(pytest.fail, tmp_path)


def test_a_disk_that_cannot_be_written_to_is_told(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scenes, "_write_cards", fails)
    with pytest.raises(UserError, match=r"scenes: cannot be built \(No space left on device\)"):
        scenes.build(lambda *_: None, tmp_path / "scenes", COUNTS)
    assert list(tmp_path.iterdir()) == [], "nothing stays behind"


def test_the_command_tells_a_mistake_in_one_line(tmp_path):
    (tmp_path / "mine.txt").touch()
    command = [sys.executable, str(Path(scenes.__file__).parent), "scenes", "--out", str(tmp_path / "mine.txt")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, f"error: {tmp_path / 'mine.txt'}: is a file; give a new folder\n")
    result = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.endswith(
        "--check, --packages and --only are of the four corpora of datasets/, not of scenes\n"
    )


def test_a_missing_archive_is_told_in_one_line(tmp_path):
    pytest.importorskip("resvg_py")
    command = [sys.executable, str(Path(scenes.__file__).parent), "--out", str(tmp_path / "out"), "--only", "health"]
    result = subprocess.run([*command, "--packages", str(tmp_path)], capture_output=True, text=True, check=False)
    missing = tmp_path / "healthicons-2.0.0.tgz"
    said = f"error: {missing} is missing: run without --packages to fetch it\n"
    assert (result.returncode, result.stderr) == (2, said)
    assert list(tmp_path.iterdir()) == []
