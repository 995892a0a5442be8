"""Numbers of a study, from ledgers whose truth is known."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from grr_coca.common.dict_to_dataclass import differences, to_dict
from grr_coca.evaluate.split import contrastive_batches
from grr_coca.model.presets import get_preset
from grr_coca.study.ledger import read_ledger
from grr_coca.study.plan import METRICS, Plan, read_plan
from grr_coca.study.report.numbers import (
    PARTS_OF_PRESET,
    STATISTICS,
    Endpoint,
    effect_of,
    image_intervals,
    rows_by_run,
    study_results,
)
from grr_coca.study.report.tables import cost_table
from grr_coca.study.report.verdict import verdict
from grr_coca.study.statistics import smallest_detectable_effect
from synthetic_study import EFFECTS, plan, rows_of, write_study

PAIR = ("baseline_coca", "grr_coca")
ALL = (*PAIR, *(arm for arm in PARTS_OF_PRESET if arm not in PAIR))


def results_of(folder, content, rows):
    write_study(folder, content, rows)
    made = read_plan(folder / "plan.yaml", Plan)
    return study_results(made, read_ledger(folder, made))


def plan_of(folder, content) -> Plan:
    write_study(folder, content, [])
    return read_plan(folder / "plan.yaml", Plan)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a finished study."""
    return results_of(tmp_path_factory.mktemp("whole"), plan(ALL), rows_of(ALL, range(8)))


def endpoint(results, arm, name):
    (found,) = (r for a in results.arms if a.arm == arm for r in a.endpoints if r.endpoint == name)
    return found


def test_an_effect_is_the_mean_log_ratio_as_a_percentage():
    effect = effect_of({3: math.log(0.98), 5: math.log(0.96)})
    assert effect.seeds == (3, 5)
    assert effect.changes == pytest.approx((-2.0, -4.0))
    assert effect.change == pytest.approx(100 * (math.sqrt(0.98 * 0.96) - 1))
    assert effect.low < -4 < -2 < effect.high, "two seeds tell little"
    assert not effect.excludes_zero


def test_one_seed_has_a_change_and_nothing_else():
    effect = effect_of({0: math.log(1.5)})
    assert effect.change == pytest.approx(50.0)
    assert (effect.low, effect.high, effect.p_t, effect.deviation) == (None,) * 4
    assert not effect.is_equivalent
    assert effect_of({}) is None


def test_a_row_of_each_stage_makes_the_endpoints(tmp_path):
    rows = rows_of(PAIR, range(2))
    found = results_of(tmp_path, plan(PAIR, 2), rows)
    value = {(r.arm, r.seed, r.stage): r.metrics["test"] for r in rows}
    by_hand = [
        np.mean(
            [
                math.log(value["grr_coca", s, t]["perplexity"] / value["baseline_coca", s, t]["perplexity"])
                for t in ("health", "clipart", "glyphs")
            ]
        )
        for s in range(2)
    ]
    fine = endpoint(found, "grr_coca", "finetuning/perplexity").effect
    assert fine.changes == pytest.approx([100 * math.expm1(ratio) for ratio in by_hand])
    first = endpoint(found, "grr_coca", "pretraining/R@1")
    assert first.arm_value == pytest.approx(
        math.sqrt(math.prod(value["grr_coca", s, "pictograms"]["R@1"] for s in range(2)))
    )
    assert (first.is_primary, first.p_holm) == (False, None)


def test_the_true_effects_lie_in_the_intervals(whole):
    truth = 100 * math.expm1(sum(EFFECTS.values()))
    effect = endpoint(whole, "grr_coca", "pretraining/coca_loss").effect
    assert effect.low < truth < effect.high
    assert whole.is_complete
    assert (whole.num_seeds, whole.missing, whole.notes) == (8, (), ())


def test_what_could_have_been_shown_is_told_of_primary_endpoints(whole, tmp_path):
    found = endpoint(whole, "grr_coca", "pretraining/coca_loss")
    deviations = smallest_detectable_effect(8, 6)
    assert math.log1p(-found.smallest_shown / 100) == pytest.approx(-deviations * found.effect.deviation / 100)
    assert endpoint(whole, "grr_coca", "pretraining/R@1").smallest_shown is None
    few = endpoint(results_of(tmp_path, plan(PAIR, 6), rows_of(PAIR, range(6))), "grr_coca", "pretraining/coca_loss")
    assert few.effect.p_t < 0.001, "however small p is, six seeds decide nothing of six endpoints"
    assert (few.p_holm, few.smallest_shown) == (None, None)


def test_the_t_test_decides_where_a_seed_disagrees(tmp_path):
    """Seven seeds of eight fall by 3 to 5 %, one rises."""
    ratios = [0.95, 0.96, 0.97, 0.95, 0.96, 0.97, 0.96, 1.005]
    rows = [replace(row, metrics={"test": dict.fromkeys(METRICS, 2.0)}) for row in rows_of(PAIR, range(8))]
    rows = [
        replace(row, metrics={"test": {**row.metrics["test"], "coca_loss": 2.0 * ratios[row.seed]}})
        if row.arm == "grr_coca"
        else row
        for row in rows
    ]
    found = endpoint(results_of(tmp_path, plan(PAIR), rows), "grr_coca", "pretraining/coca_loss")
    logs = np.log(ratios)
    t = logs.mean() / (logs.std(ddof=1) / math.sqrt(8))
    assert found.effect.p_t == pytest.approx(2 * stats.t.sf(-t, 7))
    assert found.p_holm == pytest.approx(6 * found.effect.p_t), "of six endpoints, the others do not differ at all"
    assert verdict(found) == "better"


def test_all_of_it_is_json(whole):
    again = json.loads(json.dumps(to_dict(whole), allow_nan=False))
    assert again["arms"][0]["endpoints"][0]["effect"]["seeds"] == list(range(8))


def test_a_study_that_is_not_finished_says_what_is_missing(tmp_path):
    rows = [r for r in rows_of(PAIR, range(3)) if (r.arm, r.seed, r.stage) != ("grr_coca", 2, "glyphs")]
    found = results_of(tmp_path, plan(PAIR, 4), rows)
    assert (found.num_rows, found.num_planned_rows, found.num_seeds) == (23, 32, 2)
    assert found.missing == (
        "baseline_coca: all stages of seed 3",
        "grr_coca: glyphs of seed 2",
        "grr_coca: all stages of seed 3",
    )
    assert endpoint(found, "grr_coca", "pretraining/coca_loss").effect.seeds == (0, 1, 2)
    assert endpoint(found, "grr_coca", "finetuning/coca_loss").effect.seeds == (0, 1)


def test_rows_of_other_recipes_are_named_and_do_not_count(tmp_path):
    rows = rows_of(PAIR, range(2)) + rows_of(["grr_coca"], [1], recipe_digest="f" * 16, seconds=1e9)
    found = results_of(tmp_path, plan(PAIR, 2), rows)
    assert found.is_complete
    assert len(found.notes) == 4
    assert all(re.search(r"grr_coca, lr 0.006, seed 1, \w+: not counted: another recipe", note) for note in found.notes)
    assert max(found.costs[0].seconds.values()) < 1e9


@pytest.mark.parametrize("recall", [0.0, math.inf])
def test_what_has_no_ratio_is_named(tmp_path, recall):
    rows = rows_of(PAIR, range(3))
    broken = next(i for i, r in enumerate(rows) if (r.arm, r.seed, r.stage) == ("grr_coca", 1, "pictograms"))
    metrics = {**rows[broken].metrics, "test": {**rows[broken].metrics["test"], "R@1": recall}}
    rows[broken] = replace(rows[broken], metrics=metrics)
    found = results_of(tmp_path, plan(PAIR, 3), rows)
    assert endpoint(found, "grr_coca", "pretraining/R@1").effect.seeds == (0, 2)
    assert endpoint(found, "grr_coca", "pretraining/coca_loss").effect.seeds == (0, 1, 2)
    (note,) = found.notes
    assert "grr_coca, R@1, text to image after pretraining: NaN, infinite or not above zero with seeds 1" in note


def test_rows_without_the_scores_that_an_endpoint_needs_are_missing_and_named(tmp_path):
    rows = rows_of(PAIR, range(3))
    for index, row in enumerate(rows):
        if (row.arm, row.stage) == ("grr_coca", "pictograms") and row.seed < 2:
            test = {metric: value for metric, value in row.metrics["test"].items() if metric != "CIDEr-D"}
            rows[index] = replace(row, metrics={**row.metrics, "test": test})
    found = results_of(tmp_path, plan(PAIR, 3), rows)
    assert (found.num_rows, found.num_planned_rows) == (22, 24)
    assert found.missing == ("grr_coca: pictograms of seeds 0, 1",)
    assert endpoint(found, "grr_coca", "pretraining/CIDEr-D").effect.seeds == (2,)
    assert endpoint(found, "grr_coca", "pretraining/coca_loss").effect.seeds == (0, 1, 2)
    (note,) = found.notes
    assert "grr_coca, CIDEr-D after pretraining: not measured with seeds 0, 1;" in note


def test_a_presets_parts_are_those_of_its_image_encoder():
    baseline = get_preset("baseline_coca", "tiny")
    keys = {"RMSNorm": "norm", "GEGLU": "feed_forward", "RoPE": "position"}
    for name, parts in PARTS_OF_PRESET.items():
        changed = {
            key.removeprefix("image_encoder.transformer.")
            for key, *_ in differences(get_preset(name, "tiny"), baseline)
        }
        assert changed - {"hidden_dim"} == {keys[part] for part in parts}, name


def test_seconds_are_medians_over_seeds(tmp_path):
    rows = [
        *rows_of(["baseline_coca"], range(3), seconds=100.0),
        *rows_of(["grr_coca"], range(2), seconds=120.0),
        *rows_of(["grr_coca"], [2], seconds=7.0),
    ]
    baseline, grr = results_of(tmp_path, plan(PAIR, 3), rows).costs
    assert (baseline.seconds["pictograms"], grr.seconds["pictograms"]) == (100.0, 120.0)


def test_the_cost_of_training_is_shown(tmp_path):
    rows = rows_of(PAIR, [0], training_flops=2_500_000_000_000)
    results = results_of(tmp_path, plan(PAIR, 1), rows)
    table = cost_table(plan_of(tmp_path, plan(PAIR, 1)), results)
    column = table.heads.index("TFLOP, pictograms")
    assert [row[column] for row in table.rows] == ["2.50", "2.50"]


# --- Intervals over images


NUM_IMAGES = 200


def interval_over_images(*asked):
    found = image_intervals(*asked)
    return found and found.over_images


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
    without_losses = {key: replace(row, metrics={}) for key, row in rows.items()}
    assert interval_over_images(without_losses, made, Endpoint("pretraining/coca_loss"), "grr_coca", (0, 1)) is None


def with_coca_loss(row, captioning_weight=2.0):
    """A row whose CoCa loss is that of its values: 200 captions make six batches of 32, and one that is filled up."""
    values = {**row.values["test"], "contrastive_batches": row.values["test"]["contrastive_batches"][:7]}
    contrastive, captioning = np.mean(values["contrastive_batches"]), sum(values["nll"]) / sum(values["tokens"])
    losses = {"contrastive_loss": contrastive, "captioning_loss": captioning, "contrastive_batch_size": 32.0}
    losses["coca_loss"] = contrastive + captioning_weight * captioning
    return replace(row, metrics={"test": losses}, values={"test": values})


def test_the_coca_loss_is_drawn_by_batches_with_their_captions(studied):
    made, rows = studied
    rows = {key: with_coca_loss(row) for key, row in rows.items()}
    for row in rows.values():
        columns = [part.sum() for part in STATISTICS["coca_loss"](row.values["test"], row.metrics["test"])]
        assert columns[0] / columns[1] + columns[2] / columns[3] == pytest.approx(row.metrics["test"]["coca_loss"])
    endpoint = Endpoint("pretraining/coca_loss")
    low, high = interval_over_images(rows, made, endpoint, "grr_coca", (0, 1))
    losses = {key: row.metrics["test"]["coca_loss"] for key, row in rows.items()}
    ratios = [np.log(losses["grr_coca", s, "pictograms"] / losses["baseline_coca", s, "pictograms"]) for s in (0, 1)]
    assert low < 100 * np.expm1(np.mean(ratios)) < high < 0
    assert image_intervals(rows, made, endpoint, "grr_coca", (0, 1)).over_both is not None


def test_the_captions_of_a_batch_are_those_that_its_contrastive_loss_is_of(studied):
    _, rows = studied
    row = with_coca_loss(rows["grr_coca", 0, "pictograms"])
    _, _, nats, tokens = STATISTICS["coca_loss"](row.values["test"], row.metrics["test"])
    batches = contrastive_batches(NUM_IMAGES, 32)
    nll = np.array(row.values["test"]["nll"])
    assert nats[:6] == pytest.approx([2 * nll[batch.numpy()].sum() for batch in batches[:6]])
    assert tokens.tolist() == [5 * 32] * 6 + [5 * 8], "captions that fill up the last batch count once"


def test_a_coca_loss_with_other_weights_has_no_interval_over_images(studied):
    made, rows = studied
    rows = {key: with_coca_loss(row, captioning_weight=1.0) for key, row in rows.items()}
    assert interval_over_images(rows, made, Endpoint("pretraining/coca_loss"), "grr_coca", (0, 1)) is None


# --- Intervals over seeds and images


def with_nats(rows, nats_of):
    """Rows whose images have these nats, by arm and seed; each image has one token."""
    return {
        key: replace(row, values={"test": {"nll": nats_of(*key[:2]).tolist(), "tokens": [1] * NUM_IMAGES}})
        for key, row in rows.items()
    }


def test_crossed_intervals_with_one_kind_of_noise_are_those_of_this_kind(studied):
    made, rows = studied
    endpoint = Endpoint("pretraining/perplexity")
    noise = np.random.default_rng(1).normal(0, 0.1, NUM_IMAGES)
    images = image_intervals(
        with_nats(rows, lambda arm, _: 3 + noise * (arm == "grr_coca")), made, endpoint, "grr_coca", (0, 1)
    )
    assert images.over_both == pytest.approx(images.over_images), "models that do not differ by seed"
    of_seed = {("grr_coca", 0): 3.02, ("grr_coca", 1): 2.98}
    seeds = image_intervals(
        with_nats(rows, lambda *run: np.full(NUM_IMAGES, of_seed.get(run, 3.0))), made, endpoint, "grr_coca", (0, 1)
    )
    assert seeds.over_images == pytest.approx((0, 0), abs=1e-9), "images that do not differ"
    # Of two seeds, a quarter of the draws has the first alone, and a quarter the second alone.
    assert seeds.over_both == pytest.approx((100 * np.expm1(-0.02), 100 * np.expm1(0.02)))
    assert image_intervals(rows, made, endpoint, "grr_coca", (0,)).over_both is None, "one seed"


def test_crossed_intervals_contain_the_truth_where_seeds_or_images_alone_do_not(studied):
    """The mean of seeds and images, each with its own noise: the variances of both add up."""
    made, rows = studied
    rng = np.random.default_rng(2)
    endpoint, seeds, hits = Endpoint("pretraining/perplexity"), tuple(range(8)), []
    (row,) = (row for key, row in rows.items() if key == ("grr_coca", 0, "pictograms"))
    for _ in range(40):
        of_seed, of_image = rng.normal(0, 0.02, 8), rng.normal(0, 0.1, NUM_IMAGES)
        nats = {("grr_coca", s): 3 + of_seed[s] + of_image for s in seeds}
        many = {
            (arm, s, "pictograms"): replace(
                row,
                values={
                    "test": {"nll": nats.get((arm, s), np.full(NUM_IMAGES, 3.0)).tolist(), "tokens": [1] * NUM_IMAGES}
                },
            )
            for arm in PAIR
            for s in seeds
        }
        found = image_intervals(many, made, endpoint, "grr_coca", seeds)
        hits.append([low < 0 < high for low, high in found])
    over_images, over_both = np.mean(hits, axis=0)
    assert over_images < 0.9 <= over_both
