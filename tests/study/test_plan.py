"""A plan that cannot be run as it says is refused before anything is trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from synthetic_study import GRIDS, arm

from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.train.recipe import load_recipe, save_recipe
from grr_coca_study.plan import EARLIER_LEDGER, PLAN_FILE, Plan, point_title, points_of, read_plan
from grr_coca_study.report.answer import arm_titles
from grr_coca_study.running.agenda import RemainingWork
from grr_coca_study.stages import (
    check_recipes,
    data_digest,
    recipe_digest,
    recipe_path,
    require_precisions,
    stage_recipe,
    with_settings,
)

STUDIES = Path(__file__).parents[2] / "studies"


def other(**keys: object) -> dict[str, object]:
    """Changes of a plan: another arm beside Baseline CoCa, with seeds for its grid if it has one."""
    tuning = {"tuning": {"seeds": [9]}} if keys.keys() & {"grid", "finetune_grid"} else {}
    return {"arms": ["baseline_coca", {"name": "a", "preset": "grr_coca", **keys}], **tuning}


def primary(*names: str, **keys: object) -> dict[str, object]:
    return {"endpoints": {"primary": list(names), **keys}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sedes": [0]}, "did you mean 'seeds'?"),
        ({"arms": ["grr_coca", "baseline_coca", "grr_coca"]}, "arms: grr_coca: duplicate"),
        ({"arms": ["baseline_coca"]}, "arms: a comparison needs two or more"),
        ({"arms": ["baseline_coca", "grr_cocoa"]}, "study.yaml: arms: unknown preset 'grr_cocoa'; did you mean"),
        (other(name="../up"), "arms: '../up' cannot begin the names of files"),
        (other(name=""), "arms: '' cannot begin the names of files"),
        (other(name=".new"), "arms: '.new' cannot begin the names"),
        (other(name="a\\b"), "has a slash; pass another name"),
        (other(title="baseline_coca"), "arms: titles: baseline_coca: duplicate"),
        (other(overides={}), "did you mean 'overrides'?"),
        (other(overrides={"optimiser.lr": 1}), "optimizer"),
        (other(overrides={"seed": 5}), "arms: a: overrides: seed is set by the plan's 'seeds'; remove it here"),
        (other(overrides={"model.preset": "coca"}), "overrides: model.preset is set by an arm's 'preset'"),
        (other(overrides={"evaluation.batch_size": 4}), "overrides of arm 'a': evaluation.batch_size: must equal that"),
        ({"baseline": "coca"}, "baseline: the plan has no arm 'coca'"),
        ({"seeds": [0, 1, 0]}, "seeds: 0: duplicate"),
        ({"seeds": []}, "seeds: must be one or more integers"),
        ({"seeds": [-1]}, "seeds: must be one or more integers of at least 0"),
        ({"steps": 0}, "study.yaml: steps must be at least 1, got 0"),
        ({"num_captions": -3}, "num_captions must be at least 0, got -3"),
        ({"showcase": "test_stile"}, "did you mean 'test_style'?"),
        (primary("pretraining/coca_los"), "did you mean 'pretraining/coca_loss'?"),
        (primary("coca_loss"), "unknown 'coca_loss'"),
        (primary(), "endpoints: primary must have one or more"),
        (primary("pretraining/coca_loss", split="tests"), "add a split named 'tests'"),
        (primary("finetuning/coca_loss") | {"finetune": []}, "unknown 'finetuning/coca_loss'"),
        ({"finetune": ["health.yaml", "./health.yaml"]}, "health: duplicate"),
        ({"finetune": ["healt.yaml"]}, "its folder has glyphs.yaml"),
        ({"pretrain": "health.yaml", "finetune": ["glyphs.yaml"]}, "pretraining needs the keys"),
        (other(grid={"optimizer.lr": [0.1, 0.1]}), "arms: a: grid: optimizer.lr: 0.1: duplicate"),
        (other(grid={"optimizer.betas": [[0.9, 0.95]] * 2}), "betas: [0.9, 0.95]: duplicate"),
        (
            other(grid={"optimizer.lr": ["1e-1", 0.1]}),
            "arms: a: grid: {'optimizer.lr': 0.1} has the same result as {'optimizer.lr': '1e-1'} in pictograms",
        ),
        (other(grid={"data.num_workers": [0, 1]}), "1} has the same result as {'data.num_workers': 0"),
        (other(grid={"losses.captioning_weight": [2.0, 0.1]}), "losses.captioning_weight: must be the same at all"),
        (other(finetune_grid={"data.train": ["a.tar", "b.tar"]}), "grid: data.train: must be the same"),
        (other(grid={"optimizer.lr": []}), "grid: optimizer.lr: must have one or more values"),
        (other(grid={"losses": [{"z": 1}]}), "losses is a group of keys; set one key"),
        (other(grid={"optimizer.lr": [1]}, overrides={"optimizer.lr": 1}), "optimizer.lr is also in the grid"),
        (other(grid={"optimizer.rl": [1]}), "did you mean 'lr'?"),
        (
            other(overrides={"optimizer.learning_rates": {"image_encoder.postion": 0.1}}),
            "the model has no parameters 'image_encoder.postion'; did you mean",
        ),
        (
            other(overrides={"model.image_positions": "sine_cosine"}),
            "arms: a: model: image_positions 'sine_cosine' needs learned patch positions, which this preset",
        ),
        (other(finetune_grid={"seed": [1, 2]}), "arms: a: finetune_grid: seed is set by"),
        (other(finetune_grid={"optimizer.lr": [1]}) | {"finetune": []}, "the plan has no fine-tuning"),
        ({"arms": GRIDS}, "arms: baseline_coca: a grid needs separate seeds, which choose the best point; add"),
        ({"tuning": {"seeds": [-1]}}, "tuning: seeds: must be one or more integers of at least 0"),
        ({"tuning": {"seeds": []}}, "tuning: seeds: must be one or more integers of at least 0"),
        ({"tuning": {"seeds": [9, 9]}}, "tuning: seeds: 9: duplicate"),
        ({"tuning": {"seeds": [9]}}, "tuning: no arm has a grid; add one, or remove this key"),
        ({"tuning": {"seeds": [9], "steps": 0}}, "tuning: steps must be at least 1, got 0"),
        ({"tuning": {"seeds": [9], "score": "CIDEr-D"}}, "unknown key 'score'"),
        ({"tuning": {"seeds": [1]}}, "seed 1 is also one of the plan's seeds"),
        (
            {"arms": [*GRIDS, arm("coca", grid={"optimizer.lr": [1]})], "tuning": {"seeds": [9], "shared": True}},
            "tuning: shared: the grids of the arms differ",
        ),
    ],
    ids=str,
)
def test_rejects_an_invalid_plan(write_study, changes, named):
    path = write_study(**changes)
    with pytest.raises(UserError) as refused:
        check_recipes(read_plan(path, Plan), path)
    assert named in str(refused.value)


def test_rejects_precisions_that_depend_on_the_machine(write_study, tmp_path):
    path = write_study()
    recipe = load_recipe(tmp_path / "pictograms.yaml")
    muon = replace(recipe.optimizer, name="muon", muon_precision="auto")
    save_recipe(replace(recipe, precision="auto", optimizer=muon), tmp_path / "pictograms.yaml")
    plan = read_plan(path, Plan)
    require_precisions(plan, path)
    for key in ("precision", "muon_precision"):
        with pytest.raises(UserError, match=rf"study\.yaml: {key}: 'auto' depends on the machine; set fp32 or bf16"):
            require_precisions(replace(plan, **{key: "auto"}), path)


def test_overrides_of_an_arm_apply_only_to_pretraining(write_study):
    arm = {"name": "normed", "preset": "grr_coca", "overrides": {"model.qk_norm": "rms", "optimizer.lr": 0.5}}
    plan = read_plan(write_study(arms=["baseline_coca", arm]), Plan)
    pretraining, finetuning = (stage_recipe(plan, plan.arms[1], stage, 3, {}) for stage in ("pictograms", "health"))
    assert (pretraining.model.preset, pretraining.model.qk_norm) == ("grr_coca", "rms")
    assert (pretraining.optimizer.lr, finetuning.optimizer.lr) == (0.5, 1e-3)
    assert {pretraining.seed, finetuning.seed} == {3}
    assert finetuning == stage_recipe(plan, plan.arms[0], "health", 3, {}), "equal settings for all arms"


@pytest.fixture
def write_own_recipes(write_study, tmp_path):
    """Lay out a study whose second arm has recipes of its own; returns the path of its plan."""

    def write(own: dict[str, object], stage: str = "pictograms", baseline="baseline_coca", **changes):
        other = {"name": "other", "preset": "grr_coca", "title": "The other way", "recipes": "own"}
        path = write_study(arms=[baseline, other], **changes)
        (tmp_path / "own").mkdir(exist_ok=True)
        for name in ("pictograms", "health", "glyphs"):
            recipe = load_recipe(tmp_path / f"{name}.yaml")
            save_recipe(with_settings(recipe, own if name == stage else {}, "here"), tmp_path / "own" / f"{name}.yaml")
        return path

    return write


def test_arm_can_have_separate_recipes(write_own_recipes, tmp_path):
    own = {"optimizer.name": "adamw", "data.augmentation": {"crop": 0.5}, "schedule.steps": 12}
    path = write_own_recipes(
        own, baseline=arm("baseline_coca", grid={"optimizer.lr": [1]}), tuning={"seeds": [9], "steps": 2}
    )
    plan = read_plan(path, Plan)
    check_recipes(plan, path)
    theirs, ours = (stage_recipe(plan, arm, "pictograms", 0, {}) for arm in plan.arms)
    assert (ours.optimizer.name, ours.data.augmentation.crop) == ("adamw", 0.5)
    assert (theirs.data.augmentation.crop, theirs.schedule.steps) == (0.0, 6)
    trials = [stage_recipe(plan, arm, "pictograms", 9, {}, is_trial=True).schedule.steps for arm in plan.arms]
    assert trials == [2, 4], "an equal share of its steps"
    given = replace(plan, steps=3)
    assert [stage_recipe(given, arm, "pictograms", 0, {}).schedule.steps for arm in plan.arms] == [3, 6]
    assert arm_titles(plan)["other"] == "The other way"
    assert recipe_path(plan, plan.arms[1], "health") == tmp_path / "own" / "health.yaml"


@pytest.mark.parametrize(
    ("key", "value", "stage"),
    [
        ("tokenizer.vocab_size", 300, "pictograms"),
        ("data.test", {"test": "data/pictograms-test_style.tar"}, "pictograms"),
        ("data.train", "data/pictograms-test.tar", "pictograms"),
        ("losses.captioning_weight", 1.0, "glyphs"),
        ("evaluation.batch_size", 4, "health"),
    ],
)
def test_settings_that_affect_comparability_must_be_equal(write_own_recipes, tmp_path, monkeypatch, key, value, stage):
    monkeypatch.chdir(tmp_path)
    in_folder = {"data.test": lambda v: {"test": str(tmp_path / v["test"])}, "data.train": lambda v: str(tmp_path / v)}
    path = write_own_recipes({key: in_folder.get(key, lambda v: v)(value)}, stage)
    with pytest.raises(UserError) as refused:
        check_recipes(read_plan(path, Plan), path)
    assert f"own/{stage}.yaml: {key.removesuffix('.vocab_size')}" in str(refused.value)


def test_missing_or_mismatched_recipes_are_named(write_own_recipes, tmp_path):
    path = write_own_recipes({"model.preset": "coca"})
    preset = r"own/pictograms\.yaml: model: preset is 'coca', but arm 'other' has 'grr_coca'"
    with pytest.raises(UserError, match=preset):
        check_recipes(read_plan(path, Plan), path)
    path = write_own_recipes({})
    (tmp_path / "own" / "health.yaml").unlink()
    with pytest.raises(UserError, match=r"own/health\.yaml: no such recipe"):
        check_recipes(read_plan(path, Plan), path)
    (tmp_path / "data" / "pictograms-test.tar").unlink()
    with pytest.raises(UserError, match=r"pictograms-test\.tar"):
        check_recipes(read_plan(path, Plan), path)


def test_overrides_and_grids_take_switches_and_lists(write_study):
    betas = [[0.9, 0.95], [0.9, 0.98]]
    plain = arm("plain", preset="grr_coca", overrides={"model.qk_norm": "rms"})
    plain["grid"] = {"compile": [True, False], "optimizer.betas": betas}
    path = write_study(arms=["baseline_coca", plain], tuning={"seeds": [9]})
    plan = read_plan(path, Plan)
    check_recipes(plan, path)
    assert stage_recipe(plan, plan.arms[1], "pictograms", 0, {"compile": True}).compile is True
    assert len(points_of(plan, plan.arms[1], "pictograms")) == 4


def test_grid_is_every_combination(write_study):
    plan = read_plan(write_study(**other(grid={"optimizer.lr": [1, 2], "optimizer.weight_decay": [3, 4]})), Plan)
    grid = points_of(plan, plan.arms[1], "pictograms")
    assert [tuple(settings.values()) for settings in grid] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert point_title(grid[0]) == "lr 1, weight_decay 3"
    assert points_of(plan, plan.arms[1], "health") == points_of(plan, plan.arms[0], "pictograms") == [{}]


def test_arm_without_a_grid_has_the_points_that_are_shared(write_study):
    tuning = {"seeds": [9], "shared": True}
    plan = read_plan(write_study(arms=[*GRIDS, "coca"], tuning=tuning), Plan)
    assert points_of(plan, plan.arms[2], "pictograms") == [{"optimizer.lr": 0.001}, {"optimizer.lr": 0.01}]


def test_editing_a_recipe_does_not_change_a_running_study(write_study, tmp_path):
    plan = read_plan(write_study(), Plan)
    arm, recipe = plan.arms[0], load_recipe(tmp_path / "health.yaml")
    for number in range(40):  # a study has as many, if its arms have recipes of their own
        (tmp_path / str(number)).mkdir()
        save_recipe(recipe, tmp_path / str(number) / "health.yaml")
        own = replace(arm, recipes=str(tmp_path / str(number)))
        assert stage_recipe(plan, arm, "health", 0, {}) == stage_recipe(plan, own, "health", 0, {})
    save_recipe(with_settings(recipe, {"optimizer.lr": 0.5}, "here"), tmp_path / "0" / "health.yaml")
    first = replace(arm, recipes=str(tmp_path / "0"))
    assert stage_recipe(plan, first, "health", 0, {}) == stage_recipe(plan, arm, "health", 0, {})


# --- Digests


@pytest.fixture
def recipe(write_study):
    plan = read_plan(write_study(), Plan)
    return stage_recipe(plan, plan.arms[0], "pictograms", 0, {})


def test_digest_covers_only_settings_that_affect_the_run(recipe):
    digest = recipe_digest(recipe, None)
    assert recipe_digest(recipe, "a start") != digest
    for key, value, counts in (
        ("data.num_workers", 2, False),
        ("data.micro_batch_size", 2, False),
        ("checkpoints.minutes", 1.0, False),
        ("health.max_skipped", 3, False),
        ("seed", 5, False),
        ("data.batch_size", 4, True),
        ("data.augmentation.shift", 0.5, True),
        ("data.mix", {"more.tar": 0.25}, True),
        ("optimizer.lr", 0.5, True),
        ("optimizer.learning_rates", {}, False),
        ("optimizer.learning_rates", {"image_encoder": 0.0}, True),
        ("model.image_positions", "random", False),
        ("model.image_positions", "sine_cosine", True),
        ("model.framing", {}, True),
        ("schedule.steps", 7, True),
        ("model.preset", "grr_coca", True),
        ("model.pixel_mean", 1.0, True),
        ("tokenizer.vocab_size", 400, True),
        ("losses.captioning_weight", 1.0, True),
        ("evaluation.batch_size", 4, True),
        ("precision", "bf16", True),
    ):
        changed = recipe_digest(with_settings(recipe, {key: value}, "test"), None)
        assert (changed != digest) is counts, key


def test_digest_of_a_mixture_has_fractions_and_no_paths(recipe):
    """The digest of the data covers the pairs."""
    one, moved, more = (
        recipe_digest(with_settings(recipe, {"data.mix": {path: share}}, "test"), None)
        for path, share in (("a/more.tar", 0.25), ("b/more.tar", 0.25), ("a/more.tar", 0.5))
    )
    assert one == moved != more


def test_digest_of_a_large_file_has_both_ends_and_the_size(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("grr_coca_study.stages._MAX_HASHED", 1000)
    monkeypatch.setattr("grr_coca_study.stages._HASHED_END", 100)
    path = tmp_path / "large.tar"
    large = replace(recipe, data=replace(recipe.data, train=str(path)))
    content = bytes(3000)
    digests = []
    for other in (
        content,
        b"x" + content[1:],
        content[:-1] + b"x",
        content[1:],
        content[:1500] + b"x" + content[1501:],
    ):
        path.write_bytes(other)
        digests.append(data_digest(large))
    assert len(set(digests[:4])) == 4
    assert digests[4] == digests[0], "the middle is not read"


def test_recipes_of_stages_that_do_not_fit_are_named(write_study, tmp_path):
    path = write_study()
    plan = read_plan(path, Plan)
    pretraining, tuning = (load_recipe(tmp_path / f"{name}.yaml") for name in ("pictograms", "health"))
    save_recipe(replace(tuning, model=pretraining.model), tmp_path / "health.yaml")
    with pytest.raises(UserError, match=r"health\.yaml: a fine-tuning keeps the pretrained model; remove the keys"):
        check_recipes(plan, path)
    save_recipe(replace(tuning, data=replace(tuning.data, val=None)), tmp_path / "health.yaml")
    with pytest.raises(
        UserError,
        match=r"health\.yaml: data: val is missing; add a validation split, on which a study refits temperatures",
    ):
        check_recipes(plan, path)


def test_data_digest_depends_on_bytes_not_location(recipe, tmp_path):
    before = data_digest(recipe)
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = {name: path.replace("/data/", "/moved/") for name, path in recipe.data.test.items()}
    train = recipe.data.train.replace("/data/", "/moved/")
    there = replace(recipe, data=replace(recipe.data, train=train, val=train, test=moved))
    assert data_digest(there) == before
    path = Path(train)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert data_digest(there) != before


def test_data_digest_of_a_folder_covers_only_data_files(recipe, tmp_path):
    for name in ("a.webp", "deep/b.webp"):
        (tmp_path / "pairs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pairs" / name).write_bytes(name.encode())
    of_folder = replace(recipe, data=replace(recipe.data, train=str(tmp_path / "pairs")))
    before = data_digest(of_folder)
    (tmp_path / "pairs" / ".thumbnails").mkdir()
    (tmp_path / "pairs" / ".thumbnails" / "a.webp").write_bytes(b"small")
    assert data_digest(of_folder) == before
    (tmp_path / "pairs" / "deep" / "b.webp").write_bytes(b"other")
    assert data_digest(of_folder) != before


# --- Plans that earlier code has run are frozen


FINISHED = sorted(path.parent for path in STUDIES.rglob(EARLIER_LEDGER))


@pytest.mark.ci
def test_rejects_a_plan_run_by_earlier_code(tmp_path, capsys):
    for folder in FINISHED:
        before = sorted(folder.rglob("*"))
        plans = [folder / PLAN_FILE, *filter(Path.exists, [folder.with_suffix(".yaml")])]
        run = [["run", str(path), "--out", str(tmp_path / "new")] for path in plans]
        for command in (*run, ["status", str(folder)], ["report", str(folder)]):
            assert main(["study", *command]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "earlier code has run this plan; use commit 477a50ee, or ed1405e6" in line
        assert sorted(folder.rglob("*")) == before
    assert not (tmp_path / "new").exists()


def test_digests_of_committed_rows_do_not_change_with_the_code(tmp_path):
    """So rows of finished studies can still be compared with new ones."""
    folder = STUDIES / "adamw" / "best"
    content = yaml.safe_load((folder / PLAN_FILE).read_text(encoding="utf-8"))
    content["pretrain"] = str((folder / content["pretrain"]).resolve())
    for each in content["arms"]:
        del each["variant"]  # a key of an earlier form
    (tmp_path / PLAN_FILE).write_text(yaml.safe_dump(content))
    found = RemainingWork(read_plan(tmp_path / PLAN_FILE, Plan), lambda *_: Path("nowhere")).digests
    written = yaml.safe_load((folder / "digests.json").read_text(encoding="utf-8"))
    assert written["recipes"]
    assert found.recipes == {
        name: {stage: (digest,) for stage, digest in stages.items()} for name, stages in written["recipes"].items()
    }
    assert found.data == written["data"]
