"""What a row says of its splits, where an image has several captions or several rows of a table."""

import csv
from dataclasses import replace

import pytest
from support import PairsInMemory, real_pairs, tiny_recipe

from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import Subset
from grr_coca.evaluate.split import scaling_of
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.checkpoint_files import FOLDER
from grr_coca.train.recipe import EvaluationRecipe
from grr_coca_study.plan import Plan, read_plan
from grr_coca_study.running.measured import examples, measure_test, without_words, write_showcase

CAPTIONS = (("a cat", "a red heart"), ("a dog", "a sign"), ("a flag", "a sign"))


@pytest.fixture
def table(tmp_path) -> PairSource:
    """Three images with two rows each, those of an image far apart."""
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "caption"))
        rows.writerows((f"{image}.webp", captions[row]) for row in range(2) for image, captions in enumerate(CAPTIONS))
    for image, pair in enumerate(real_pairs(len(CAPTIONS))):
        (tmp_path / f"{image}.webp").write_bytes(pair.image)
    return open_source(str(tmp_path / "pairs.csv"))


@pytest.mark.ci
def test_rows_of_one_image_are_shown_with_its_caption(table):
    checkpoint = from_pretrained(FOLDER / "pictograms")
    shown = examples(checkpoint, table, 6)
    assert sorted(text for example in shown for text in example.references) == sorted(sum(CAPTIONS, ()))
    caption_by_image = {example.image: example.caption for example in examples(checkpoint, table, 1)}
    for image, caption in caption_by_image.items():
        assert {example.caption for example in shown if example.image == image} == {caption}
    assert len({(example.image, example.caption) for example in shown}) == len(CAPTIONS)


def test_stage_that_shows_no_image_has_none(table, write_study, tmp_path):
    assert examples(None, table, 0) == (), "no model is asked"
    plan = read_plan(write_study(num_captions=0), Plan)
    write_showcase(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_each_caption_of_a_test_image_is_measured(table):
    several = PairsInMemory(
        [replace(table[image], more_captions=CAPTIONS[image][1:]) for image in range(len(CAPTIONS))]
    )
    checkpoint = from_pretrained(FOLDER / "pictograms")
    recipe = tiny_recipe("pairs.tar", evaluation=EvaluationRecipe(batch_size=6))
    _, values = measure_test(checkpoint, several, recipe, scaling_of(checkpoint.model), scores_captions=False)
    assert len(values["nll"]) == len(values["rank"]) == 6
    assert values["image"] == [0, 0, 1, 1, 2, 2]


def test_rows_of_one_image_are_grouped(table):
    """A table has a row for each caption, and those of an image may lie far apart."""
    checkpoint = from_pretrained(FOLDER / "pictograms")
    recipe = tiny_recipe("pairs.tar", evaluation=EvaluationRecipe(batch_size=3))
    scaling = scaling_of(checkpoint.model)
    _, values = measure_test(checkpoint, table, recipe, scaling, scores_captions=False)
    assert values["image"] == [0, 1, 2, 0, 1, 2]
    _, of_first_rows = measure_test(checkpoint, Subset(table, [0, 1, 2]), recipe, scaling, scores_captions=False)
    assert "image" not in of_first_rows, "a ledger stays small where each image has one caption"


def test_image_is_excluded_if_any_caption_has_the_word(table):
    rows = without_words(table, ("heart", "flag"))
    assert [rows.caption(index) for index in range(len(rows))] == ["a dog", "a sign"]
    several = [replace(table[image], more_captions=captions[1:]) for image, captions in enumerate(CAPTIONS)]
    images = without_words(PairsInMemory(several), ("heart", "flag"))
    assert [images.captions(index) for index in range(len(images))] == [("a dog", "a sign")]
