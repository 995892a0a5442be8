"""The plots of a demo, read back as SVG text."""

from dataclasses import replace

from grr_coca.data.sources.open import open_source
from grr_coca.study.demo.outcome import Exhibits, arm_results
from grr_coca.study.demo.plan import demo_recipes, load_demo
from grr_coca.study.demo.report import _caption_cards, learning_curves
from grr_coca.study.ledger import CaptionedExample
from grr_coca.study.running.measured import drawn_examples
from grr_coca.study.thumbnails import thumbnail
from grr_coca.train.recipe import load_recipe, save_recipe
from synthetic_study import rows_of


def test_captions_stand_beside_the_images_that_they_are_of(write_plan, tmp_path):
    """A fine-tuning is shown by its test split, even if it has a split of the showcase's name too."""
    path, health = write_plan(), tmp_path / "health.yaml"
    recipe = load_recipe(health)
    others = load_recipe(tmp_path / "pictograms.yaml").data.test["test_style"]
    save_recipe(replace(recipe, data=replace(recipe.data, test={**recipe.data.test, "test_style": others})), health)
    plan = load_demo(path)
    test = open_source(demo_recipes(plan)["health"].data.test["test"])
    pairs = [test[index] for index in drawn_examples(test, 2)]
    captions = tuple(CaptionedExample(pair.key, (pair.caption,), "said") for pair in pairs)
    rows = [
        replace(row, captions=captions if row.stage == "health" else ())
        for row in rows_of(("grr_coca", "baseline_coca"), [0])
    ]
    arms = arm_results(plan, rows, [Exhibits([], [])] * 2)
    cards = _caption_cards(plan, demo_recipes(plan)["health"], "health", arms)
    assert [(card.image, card.truth) for card in cards] == [(thumbnail(p), p.caption) for p in pairs]


def test_a_line_of_the_log_without_losses_is_left_out():
    """All steps that it is the mean of were skipped."""
    train = [{"step": 10, "skipped": 10.0}, {"step": 20, "contrastive": 2.0, "captioning": 3.0, "skipped": 10.0}]
    val = [{"step": 20, "contrastive_loss": 2.0, "captioning_loss": 3.0}]
    plot = learning_curves(("a", "b"), (train, train), (val, val))
    assert plot == learning_curves(("a", "b"), (train[1:], train[1:]), (val, val))
