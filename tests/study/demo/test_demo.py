"""The whole comparison, from a plan to a report."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import CPU, real_pairs, snapshot, write_shard
from synthetic_study import rows_of, write_study
from workers_here import WorkersHere, work_here

import grr_coca
from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.data.sources.open import open_source
from grr_coca.infer.explain import caption_maps
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.checkpoint_files import FOLDER
from grr_coca.train.logs import read_metrics
from grr_coca.train.step import Numerics
from grr_coca_study.commands.demo import _next_commands
from grr_coca_study.demo import (
    DemoFolders,
    arm_names,
    demo_recipes,
    finish_demo,
    load_demo,
    read_started_demo,
    start_demo,
    with_precisions,
    write_exhibits,
)
from grr_coca_study.running.agenda import RemainingWork
from grr_coca_study.running.measured import sample_examples
from grr_coca_study.running.stage import run_stage

PRESETS = ("grr_coca", "baseline_coca")
STAGES = ("pictograms", "health", "glyphs")


def assert_tells_what_was_measured(out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    assert (results["arms"][0]["arm"], results["baseline"]) == PRESETS
    splits = {row["split"]: row for row in results["splits"]}
    table = (out / "table.txt").read_text()
    for name in ("pictograms/test", "pictograms/test_style", *(f"{domain}/test" for domain in STAGES[1:])):
        first, second = (splits[name][side]["contrastive_loss"] for side in ("model", "baseline"))
        (line,) = (line for line in table.splitlines() if line.split("  ")[0] == name)
        assert line.replace("│", " ").split()[1:4] == [f"{first:.3f}", f"{second:.3f}", f"{first / second - 1:+.2%}"]
    assert "average of 2 domains" in table
    report = (out / "report.html").read_text()
    assert "One seed is not evidence" in report
    assert all(list(cost["seconds"]) == list(STAGES) for cost in results["costs"])
    rows = [json.loads(path.read_text()) for path in (out / "rows").iterdir()]
    assert len(rows) == len(PRESETS) * len(STAGES), "no claim is left"
    assert all(len(row["captions"]) in (6, 2) for row in rows)
    shown = json.loads((out / "exhibits" / "exhibits.json").read_text())
    assert list(shown) == list(PRESETS)
    for arm, exhibits in shown.items():
        assert report.count(f'alt="where {arm} looks"') == len(exhibits["heat_maps"]) == 4
        for explained in exhibits["heat_maps"]:
            assert len(explained["words"]) == len(explained["heat"])
            assert [sum(map(sum, heat)) for heat in explained["heat"]] == pytest.approx([1.0] * len(explained["heat"]))
        assert [(search["query"], len(search["hits"])) for search in exhibits["searches"]] == [
            ("cat", 4),
            ("red heart", 4),
        ]


def assert_runs_are_complete(out: Path, steps: list[int]) -> None:
    for preset in PRESETS:
        runs = [out / preset / stage for stage in STAGES[: len(steps)]]
        assert all(read_metrics(run, "val") for run in runs)
        assert [from_pretrained(run).preset for run in runs] == [preset] * len(runs)
        assert [from_pretrained(run).step for run in runs] == steps, "every domain starts from the pretrained model"


def steps_saved(out: Path) -> list[str]:
    return sorted(str(point.relative_to(out)) for point in out.glob("*/*/checkpoints/step-*"))


@pytest.mark.ci
def test_stopped_demo_continues_to_table_and_report(write_plan, tmp_path, capfd, monkeypatch):
    plan, out = write_plan(), tmp_path / "out"
    command = ["demo", str(plan), "--out", str(out), "--steps", "6"]
    with monkeypatch.context() as patches:
        work_here(patches, interrupt="_run_in_worker")
        assert main(command) == 130
    output = capfd.readouterr().err.splitlines()
    assert output[-1] == "SIGINT: progress is saved; run the same command to continue"
    assert steps_saved(out) == ["grr_coca/pictograms/checkpoints/step-000000006"]
    work_here(monkeypatch)
    assert main(command) == 0
    output = capfd.readouterr().out
    assert "continuing this demo" in output
    assert (out / "table.txt").read_text().strip() in output
    assert_runs_are_complete(out, steps=[6, 9, 9])
    assert_tells_what_was_measured(out)
    (out / "thesis.tex").touch()
    start_demo(load_demo(plan), out)
    assert sorted(path.name for path in out.iterdir()) == ["plan.yaml", "thesis.tex"], "all of a demo, and nothing else"


@pytest.mark.ci
def test_report_shows_heat_maps_and_hits_of_the_model(tmp_path):
    source = open_source(str(write_shard(tmp_path / "pairs.tar", real_pairs(16, "pictograms", "test_style"))))
    folder, queries = tmp_path / "exhibits", ["cat", "red heart"]
    shown = write_exhibits("a", FOLDER / "pictograms", str(tmp_path / "pairs.tar"), queries, 3, folder)
    model = grr_coca.load(FOLDER / "pictograms", "cpu", engine="torch")
    images = [model.preprocess.decode(source[index].image, "") for index in range(len(source))]
    for index, explained in zip(sample_examples(source, 4), shown["heat_maps"], strict=True):
        token_ids = model.describe(images[index]).captions[0].token_ids
        maps = caption_maps(model.checkpoint, model.checkpoint.pixels(images[index]), token_ids)
        assert (explained["truth"], explained["words"]) == (source.caption(index), [each.word for each in maps])
        for heat, expected in zip(explained["heat"], maps, strict=True):
            np.testing.assert_allclose(heat, expected.heat, atol=1e-5)
        assert (folder / explained["picture"]).is_file()
    assert any(explained["words"] for explained in shown["heat_maps"])
    for query, search in zip(queries, shown["searches"], strict=True):
        cosines = model.similarity(images, query)[:, 0]
        hits = [int(Path(hit["picture"]).stem) for hit in search["hits"]]
        np.testing.assert_allclose(cosines[hits], sorted(cosines, reverse=True)[:3], atol=1e-5)
        assert [hit["caption"] for hit in search["hits"]] == [source.caption(index) for index in hits]
        assert all((folder / hit["picture"]).is_file() for hit in search["hits"])


def arm_of(plan, arm, out):
    """Run all stages of an arm in this process."""
    agenda = RemainingWork(plan, DemoFolders(out).folder_of, arms=[arm])
    while tasks := agenda.open_tasks():
        agenda.add(run_stage(tasks[0], CPU, lambda _: None))


# --- Wrong plans are found before anything is trained


@pytest.fixture
def refused(write_plan, tmp_path, monkeypatch, capsys):
    """Run a demo by a wrong plan; returns the one message."""
    monkeypatch.setattr(
        "grr_coca_study.running.workers.worker_processes", lambda: pytest.fail("processes were started")
    )

    def run(*flags: str, **changes) -> str:
        assert main(["demo", str(write_plan(**changes)), "--out", str(tmp_path / "out"), *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        return error

    return run


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arms": ["grr_coca", "coca", "baseline_coca"]}, "a demo must have two arms"),
        ({"seeds": [0, 1]}, "one seed"),
        ({"finetune": ["healt.yaml"]}, "its folder has glyphs.yaml"),
        ({"finetune": []}, "finetune must not be empty"),
        ({"endpoints": {"primary": ["pretraining/coca_loss"], "split": "test_style"}}, "split must be 'test'"),
        ({"query": ["cat"]}, "did you mean 'queries'?"),
        ({"queries": []}, "queries"),
        ({"num_hits": -1}, "num_hits must be at least 1, got -1"),
        ({"schedules": {0: None}}, "the keys of schedules must be numbers of steps, at least 1 and in ascending order"),
    ],
    ids=str,
)
def test_rejects_an_invalid_plan_before_training(refused, changes, named):
    assert named in refused(**changes)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--minutes", "0"], "--minutes must be above 0, got 0"),
        (["--minutes", "nan"], "--minutes must be above 0, got nan"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
    ],
    ids=str,
)
def test_rejects_invalid_flags_immediately(write_plan, capsys, flags, named):
    assert main(["demo", str(write_plan()), *flags]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["thesis.tex"], "contains files that do not belong to a demo; pass another --out"),
        (["rows/a.json", "plan.yaml"], "contains files that do not belong to a demo; pass another --out"),
        ([], "cannot be written to"),
    ],
    ids=str,
)
def test_folder_with_other_content_is_kept(refused, tmp_path, files, message):
    out = tmp_path / "out"
    for file in files:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_text("arms: [grr_coca, baseline_coca]")
    if not files:
        out.write_text("a file, where a folder is to be")
    before = snapshot(tmp_path)
    for flags in ([], ["--fresh"]):
        assert message in refused(*flags)
    assert {name: content for name, content in snapshot(tmp_path).items() if name in before} == before


def test_unwritable_folder_raises_before_training(refused, tmp_path, monkeypatch):
    """Root may write everywhere, so the answer of the system is made here."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert f"{tmp_path}/out: cannot be written to; pass another --out" in refused()


def test_nothing_is_compared_if_an_arm_diverged(write_plan, tmp_path):
    plan = load_demo(write_plan())
    rows = rows_of(PRESETS, [0])
    rows[0] = replace(rows[0], kind="diverged", metrics={}, values={})
    write_study(tmp_path, yaml.safe_load((tmp_path / "plan.yaml").read_text()), rows)
    with pytest.raises(UserError, match=rf"{rows[0].arm} in {rows[0].stage}: training diverged, .* again with --fresh"):
        finish_demo(plan, tmp_path, WorkersHere())


def test_demo_of_another_plan_is_not_continued(write_plan, tmp_path, capsys):
    out = tmp_path / "out"
    plan = load_demo(write_plan(num_hits=3))
    assert read_started_demo(out, plan, None, is_fresh=False) is None
    start_demo(replace(plan, steps=4), out)
    assert main(["demo", str(write_plan(num_hits=4)), "--out", str(out)]) == 2
    assert "num_hits is 3, not 4; replace the demo with --fresh" in capsys.readouterr().err
    assert main(["demo", str(write_plan(num_hits=3)), "--out", str(out), "--steps", "5"]) == 2
    assert "contains a demo with 4 steps, not 5" in capsys.readouterr().err
    assert read_started_demo(out, plan, 4, is_fresh=False) == replace(plan, steps=4)
    assert read_started_demo(out, plan, 5, is_fresh=True) is None


def test_demo_ends_with_the_command_that_repeats_it(write_plan, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["grr-coca"])
    path = write_plan()
    words = _next_commands(replace(load_demo(path), steps=6), path, tmp_path / "my demo").splitlines()
    assert words[1].endswith(f"grr-coca demo {path} --out '{tmp_path}/my demo' --fresh --steps 6")
    assert f"caption --checkpoint '{tmp_path}/my demo/grr_coca/pictograms' IMAGE.png" in words[2]
    assert words[4].endswith(f"grr-coca search {tmp_path}/demo-index cat")


def test_bundled_plan_is_complete():
    plan = load_demo(Path(__file__).parents[3] / "recipes" / "demo.yaml")
    assert arm_names(plan) == PRESETS
    recipes = demo_recipes(plan)
    assert tuple(recipes) == ("pictograms", "health", "clipart", "glyphs")
    assert plan.showcase in recipes["pictograms"].data.test
    assert all("test" in recipe.data.test for recipe in recipes.values())


def test_rejects_an_empty_showcase_before_training(write_plan, tmp_path, monkeypatch):
    monkeypatch.setattr("grr_coca_study.running.stage.train", lambda *args: pytest.fail("training began"))
    plan = load_demo(write_plan(without=[pair.caption for pair in real_pairs(16, "pictograms", "test_style")]))
    with pytest.raises(UserError):
        arm_of(plan, "grr_coca", tmp_path / "arm")


def test_auto_precision_is_chosen_once_for_all_stages(monkeypatch):
    decided = []
    monkeypatch.setattr(
        "grr_coca_study.demo.resolve_precision", lambda *args: decided.append(args) or Numerics("bf16", "fp32")
    )
    plan = with_precisions(load_demo(Path(__file__).parents[3] / "recipes" / "demo.yaml"))
    assert len(decided) == 1
    assert {recipe.precision for recipe in demo_recipes(plan).values()} == {"bf16"}
    assert {recipe.optimizer.muon_precision for recipe in demo_recipes(plan).values()} == {"fp32"}


def test_recipe_that_names_its_precision_keeps_it(write_plan):
    plan = replace(load_demo(write_plan()), precision="bf16", muon_precision="bf16")
    assert {recipe.precision for recipe in demo_recipes(plan).values()} == {"fp32"}
