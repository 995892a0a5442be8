"""Endpoints and their intervals over images, against a reference and against data whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import rows_of

from grr_coca.evaluate.split import contrastive_batches
from grr_coca_study.report.endpoints import contributions, image_intervals, lower_is_better, title

NUM_IMAGES = 200


def test_lower_is_better_only_for_losses():
    names = ("coca_loss", "perplexity", "contrastive_loss_refitted", "R@1", "image_to_text/R@5", "CIDEr-D")
    better_low = {name for name in names if lower_is_better(f"pretraining/{name}")}
    assert better_low == {"coca_loss", "perplexity", "contrastive_loss_refitted"}
    assert title("finetuning/image_to_text/R@5") == "R@5, image to text after fine-tuning"


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
def stages():
    """Three stages with the rows of two seeds of an arm and of its baseline, which have values of each image."""
    rng = np.random.default_rng(1)
    shared = rng.uniform(2, 12, NUM_IMAGES)

    def side(arm: str, stage: str):
        rows = [row for row in rows_of([arm], range(2)) if row.stage == stage]
        shift = -0.05 if arm == "grr_coca" else 0.0
        return [replace(row, values={"test": values_of(shift, rng, shared)}) for row in rows]

    return [(side("grr_coca", stage), side("baseline_coca", stage)) for stage in ("health", "clipart", "glyphs")]


def changed(stages, change):
    """The stages with other rows."""
    return [tuple([change(row) for row in side] for side in sides) for sides in stages]


def with_values(row, **values):
    return replace(row, values={"test": {**row.values["test"], **values}})


def over_images(metric, stages):
    return image_intervals(metric, "test", stages).over_images


def ratio(metric_sum, sides):
    """Mean over seeds of the log ratio of a sum over images."""
    logs = [[np.log(metric_sum(row.values["test"])) for row in side] for side in sides]
    return np.mean(np.subtract(*logs))


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize(
    ("metric", "key"),
    [
        ("captioning_loss", "nll"),
        ("CIDEr-D", "cider_d"),
        ("contrastive_loss", "contrastive_batches"),
        ("contrastive_loss_refitted", "contrastive_batches_refitted"),
    ],
)
def test_interval_equals_that_of_the_delta_method(stages, num_stages, metric, key):
    low, high = over_images(metric, stages[:num_stages])
    centre, variance = 0.0, 0.0
    for sides in stages[:num_stages]:
        mine, theirs = (np.sum([row.values["test"][key] for row in side], axis=0) for side in sides)
        centre += np.log(mine.sum() / theirs.sum()) / num_stages
        variance += np.sum((mine / mine.sum() - theirs / theirs.sum()) ** 2) / num_stages**2
    expected = [100 * np.expm1(centre + sign * 1.96 * np.sqrt(variance)) for sign in (-1, 1)]
    assert (low, high) == pytest.approx(expected, abs=0.15 * (expected[1] - expected[0]))
    assert high - low < (3 if "batches" in key else 2), "images differ by a factor of six, in both arms alike"


@pytest.mark.parametrize(("metric", "key"), [("contrastive_loss", "contrastive_batches"), ("captioning_loss", "nll")])
def test_interval_contains_its_change_if_seeds_differ(stages, metric, key):
    """A seed with large losses counts as much as one with small losses, in the interval as in the change."""
    factors = {("baseline_coca", 0): 1.0, ("grr_coca", 0): 0.5, ("baseline_coca", 1): 0.02, ("grr_coca", 1): 0.002}

    def scaled(row):
        return with_values(row, **{key: [factors[row.arm, row.seed] * x for x in row.values["test"][key]]})

    wide = changed(stages[:1], scaled)
    low, high = over_images(metric, wide)
    assert low < 100 * np.expm1(ratio(lambda values: sum(values[key]), wide[0])) < high
    assert high - low < 1


def test_perplexity_is_a_difference_of_nats(stages):
    low, high = over_images("perplexity", stages[:1])
    sums = [sum(sum(row.values["test"]["nll"]) for row in side) for side in stages[0]]
    assert low < 100 * np.expm1((sums[0] - sums[1]) / (2 * 5 * NUM_IMAGES)) < high


@pytest.mark.parametrize("metric", ["captioning_loss", "perplexity", "R@1"])
def test_captions_are_resampled_with_their_image(stages, metric):
    """Five captions that say the same tell no more of an image than one does."""

    def repeated(row):
        five = {name: 5 * row.values["test"][name] for name in ("nll", "tokens", "rank")}
        return with_values(row, **five, image=5 * list(range(NUM_IMAGES)))

    assert over_images(metric, changed(stages, repeated)) == pytest.approx(over_images(metric, stages))


def test_seed_without_hits_is_excluded_from_that_sample(stages):
    ranks = {0: [0] * 4 + [1] * (NUM_IMAGES - 4), 1: [0] * 100 + [1] * 100}
    alike = changed(stages[:1], lambda row: with_values(row, rank=ranks[row.seed]))
    assert over_images("R@1", alike) == (0.0, 0.0), "the arms find the same"
    assert over_images("R@1", [tuple(side[:1] for side in alike[0])]) is None


def test_no_interval_without_values_or_seeds(stages):
    assert over_images("perplexity", changed(stages, lambda row: replace(row, values={}))) is None
    assert over_images("perplexity", [([], [])]) is None
    assert over_images("R@5", stages) is None
    for corrupt in ([1.0], [float("nan")] * NUM_IMAGES):
        torn = changed(stages, lambda row, nll=corrupt: with_values(row, nll=nll) if row.seed == 0 else row)
        assert over_images("perplexity", torn) is None


def with_coca_loss(row, captioning_weight=2.0):
    """A row whose CoCa loss is that of its values: 200 captions make six batches of 32, and one that is filled up."""
    values = {**row.values["test"], "contrastive_batches": row.values["test"]["contrastive_batches"][:7]}
    contrastive, captioning = np.mean(values["contrastive_batches"]), sum(values["nll"]) / sum(values["tokens"])
    losses = {"contrastive_loss": contrastive, "captioning_loss": captioning, "contrastive_batch_size": 32.0}
    losses["coca_loss"] = contrastive + captioning_weight * captioning
    return replace(row, metrics={"test": losses}, values={"test": values})


def test_coca_loss_is_resampled_by_batches(stages):
    stages = changed(stages[:1], with_coca_loss)
    row = stages[0][0][0]
    columns = contributions(row, "coca_loss", "test")
    sums = columns.sum(axis=0)
    assert sums[0] / sums[1] + sums[2] / sums[3] == pytest.approx(row.metrics["test"]["coca_loss"])
    nll = np.array(row.values["test"]["nll"])
    batches = contrastive_batches(NUM_IMAGES, 32)[:6]
    assert columns[:6, 2] == pytest.approx([2 * nll[batch.numpy()].sum() for batch in batches])
    assert columns[:, 3].tolist() == [5 * 32] * 6 + [5 * 8], "captions that fill up the last batch count once"
    found = image_intervals("coca_loss", "test", stages)
    logs = [[np.log(row.metrics["test"]["coca_loss"]) for row in side] for side in stages[0]]
    assert found.over_images[0] < 100 * np.expm1(np.mean(np.subtract(*logs))) < found.over_images[1] < 0
    assert found.over_both is not None


def test_coca_loss_needs_its_parts_for_an_interval(stages):
    assert over_images("coca_loss", changed(stages, lambda row: with_coca_loss(row, captioning_weight=1.0))) is None
    assert over_images("coca_loss", changed(stages, lambda row: replace(row, metrics={}))) is None


# --- Intervals over seeds and images


def with_nats(rows, nats_of):
    """Rows whose images have these nats, by arm and seed; each image has one token."""
    return changed(rows, lambda row: with_values(row, nll=nats_of(row.arm, row.seed), tokens=[1] * NUM_IMAGES))


def test_crossed_intervals_reduce_to_one_source_of_noise(stages):
    noise = np.random.default_rng(1).normal(0, 0.1, NUM_IMAGES)
    of_images = with_nats(stages[:1], lambda arm, _: 3 + noise * (arm == "grr_coca"))
    images = image_intervals("perplexity", "test", of_images)
    assert images.over_both == pytest.approx(images.over_images), "models that do not differ by seed"
    nats = {("grr_coca", 0): 3.02, ("grr_coca", 1): 2.98}
    of_seeds = with_nats(stages[:1], lambda *run: np.full(NUM_IMAGES, nats.get(run, 3.0)))
    seeds = image_intervals("perplexity", "test", of_seeds)
    assert seeds.over_images == pytest.approx((0, 0), abs=1e-9), "images that do not differ"
    # Of two seeds, a quarter of the draws has the first alone, and a quarter the second alone.
    assert seeds.over_both == pytest.approx((100 * np.expm1(-0.02), 100 * np.expm1(0.02)))
    assert image_intervals("perplexity", "test", [tuple(side[:1] for side in stages[0])]).over_both is None, "one seed"


def test_crossed_intervals_cover_seeds_and_images(stages):
    """The mean of seeds and images, each with its own noise: the variances of both add up."""
    rng, hits = np.random.default_rng(2), []
    eight = [tuple([replace(side[0], seed=seed) for seed in range(8)] for side in stages[0])]
    for _ in range(40):
        of_seed, of_image = rng.normal(0, 0.02, 8), rng.normal(0, 0.1, NUM_IMAGES)
        nats = {("grr_coca", seed): 3 + of_seed[seed] + of_image for seed in range(8)}
        drawn = with_nats(eight, lambda *run, nats=nats: nats.get(run, np.full(NUM_IMAGES, 3.0)))
        hits.append([low < 0 < high for low, high in image_intervals("perplexity", "test", drawn)])
    over_images, over_both = np.mean(hits, axis=0)
    assert over_images < 0.9 <= over_both
