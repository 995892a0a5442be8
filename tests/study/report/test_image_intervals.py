"""Intervals over images, on splits whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from grr_coca.study.plan import Plan, read_plan
from grr_coca.study.report.numbers import STATISTICS, Endpoint, interval_over_images, rows_by_run
from synthetic_study import plan, rows_of, write_study

PAIR = ("baseline_coca", "grr_coca")
NUM_IMAGES = 200


def values_of(shift: float, rng: np.random.Generator, shared: np.ndarray) -> dict[str, list]:
    """Values of a split; images differ widely and alike for both arms, and an arm adds `shift` to each."""
    nats = shared * np.exp(shift + rng.normal(0, 0.02, NUM_IMAGES))
    return {
        "contrastive_batches": (nats[:12] / 10).tolist(),
        "contrastive_batches_refitted": (nats[:12] / 11).tolist(),
        "nll": nats.tolist(),
        "tokens": [5] * NUM_IMAGES,
        "rank": (rng.random(NUM_IMAGES) > 0.5).astype(int).tolist(),
        "cider_d": (1 / nats).tolist(),
    }


@pytest.fixture
def studied(tmp_path):
    """A plan and rows of two seeds with values of each image."""
    write_study(tmp_path, plan(PAIR, 2), [])
    rng = np.random.default_rng(0)
    shared = rng.uniform(2, 12, NUM_IMAGES)
    rows = [
        replace(row, values={"test": values_of(-0.05 if row.arm == "grr_coca" else 0.0, rng, shared)})
        for row in rows_of(PAIR, range(2))
    ]
    return read_plan(tmp_path / "plan.yaml", Plan), rows_by_run(rows)


@pytest.mark.parametrize("phase", ["pretraining", "finetuning"])
@pytest.mark.parametrize(("metric", "key"), [("captioning_loss", "nll"), ("CIDEr-D", "cider_d")])
def test_the_interval_is_that_of_the_delta_method(studied, phase, metric, key):
    made, rows = studied
    low, high = interval_over_images(rows, made, Endpoint(f"{phase}/{metric}"), "grr_coca", (0, 1))
    stages = ("pictograms",) if phase == "pretraining" else ("health", "clipart", "glyphs")
    centre, variance = 0.0, 0.0
    for stage in stages:
        theirs, mine = (np.sum([rows[arm, s, stage].values["test"][key] for s in (0, 1)], axis=0) for arm in PAIR)
        centre += np.log(mine.sum() / theirs.sum()) / len(stages)
        variance += np.sum((mine / mine.sum() - theirs / theirs.sum()) ** 2) / len(stages) ** 2
    expected = [100 * np.expm1(centre + sign * 1.96 * np.sqrt(variance)) for sign in (-1, 1)]
    assert (low, high) == pytest.approx(expected, abs=0.15 * (expected[1] - expected[0]))
    assert high - low < 2, "images differ by a factor of six, in both arms alike"


@pytest.mark.parametrize(("metric", "key"), [("contrastive_loss", "contrastive_batches"), ("captioning_loss", "nll")])
def test_the_interval_holds_its_own_change_where_seeds_differ_widely(studied, metric, key):
    """A seed with large losses counts as much as one with small losses, in the interval as in the change."""
    made, rows = studied
    factors = {("baseline_coca", 0): 1.0, ("grr_coca", 0): 0.5, ("baseline_coca", 1): 0.02, ("grr_coca", 1): 0.002}
    for (arm, seed), factor in factors.items():
        row = rows[arm, seed, "pictograms"]
        values = {**row.values["test"], key: [factor * value for value in row.values["test"][key]]}
        rows[arm, seed, "pictograms"] = replace(row, values={"test": values})
    low, high = interval_over_images(rows, made, Endpoint(f"pretraining/{metric}"), "grr_coca", (0, 1))
    logs = {run: np.log(sum(rows[*run, "pictograms"].values["test"][key])) for run in factors}
    change = np.mean([logs["grr_coca", seed] - logs["baseline_coca", seed] for seed in (0, 1)])
    assert low < 100 * np.expm1(change) < high
    assert high - low < 1


def test_contrastive_losses_are_drawn_by_the_batch(studied):
    made, rows = studied
    for metric in ("contrastive_loss", "contrastive_loss_refitted"):
        low, high = interval_over_images(rows, made, Endpoint(f"pretraining/{metric}"), "grr_coca", (0, 1))
        assert -8 < low < high < -2


def test_perplexity_is_a_difference_of_nats(studied):
    made, rows = studied
    low, high = interval_over_images(rows, made, Endpoint("pretraining/perplexity"), "grr_coca", (0, 1))
    sums = [sum(sum(rows[arm, s, "pictograms"].values["test"]["nll"]) for s in (0, 1)) for arm in PAIR]
    assert low < 100 * np.expm1((sums[1] - sums[0]) / (2 * 5 * NUM_IMAGES)) < high


@pytest.mark.parametrize("metric", ["captioning_loss", "perplexity", "R@1"])
def test_captions_of_an_image_are_drawn_with_it(studied, metric):
    """Five captions that say the same tell no more of an image than one does."""
    made, rows = studied
    endpoint = Endpoint(f"pretraining/{metric}")
    of_one_caption = interval_over_images(rows, made, endpoint, "grr_coca", (0, 1))
    for key, row in rows.items():
        values = {name: 5 * row.values["test"][name] for name in ("nll", "tokens", "rank")}
        rows[key] = replace(row, values={"test": {**values, "image": 5 * list(range(NUM_IMAGES))}})
    assert interval_over_images(rows, made, endpoint, "grr_coca", (0, 1)) == pytest.approx(of_one_caption)


def test_a_recall_of_few_images_is_uncertain(studied):
    made, rows = studied
    low, high = interval_over_images(rows, made, Endpoint("pretraining/R@1"), "grr_coca", (0, 1))
    assert low < 0 < high
    assert high - low > 10


def test_a_seed_without_a_hit_in_a_draw_is_left_out_of_that_draw(studied):
    made, rows = studied
    ranks = {0: [0] * 4 + [1] * (NUM_IMAGES - 4), 1: [0] * 100 + [1] * 100}
    for arm, seed in ((arm, seed) for arm in PAIR for seed in (0, 1)):
        rows[arm, seed, "pictograms"] = replace(rows[arm, seed, "pictograms"], values={"test": {"rank": ranks[seed]}})
    endpoint = Endpoint("pretraining/R@1")
    assert interval_over_images(rows, made, endpoint, "grr_coca", (0, 1)) == (0.0, 0.0), "the arms find the same"
    assert interval_over_images(rows, made, endpoint, "grr_coca", (0,)) is None


def test_without_values_or_seeds_there_is_no_interval(studied):
    made, rows = studied
    endpoint = Endpoint("pretraining/perplexity")
    bare = {key: replace(row, values={}) for key, row in rows.items()}
    assert interval_over_images(bare, made, endpoint, "grr_coca", (0, 1)) is None
    assert interval_over_images(rows, made, endpoint, "grr_coca", ()) is None
    for damaged in ([1.0], [float("nan")] * NUM_IMAGES):
        values = {"test": {**rows["grr_coca", 0, "pictograms"].values["test"], "nll": damaged}}
        torn = {key: replace(row, values=values) if key[1:] == (0, "pictograms") else row for key, row in rows.items()}
        assert interval_over_images(torn, made, endpoint, "grr_coca", (0, 1)) is None
    assert "coca_loss" not in STATISTICS
    assert interval_over_images(rows, made, Endpoint("pretraining/coca_loss"), "grr_coca", (0, 1)) is None
