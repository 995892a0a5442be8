"""What the benchmarks conclude, on inputs worked out by hand, and that each still runs; what they measure needs a quiet
machine."""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from processes import launch, script

ROOT = Path(__file__).parents[1]
MEASURE_NOTHING = {
    "ceilings",
    "contestants",
    "search_contestant",
    "training_contestants",
    "publish",
    "run_clip_benchmark",
}
PROGRAMS = {
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
}


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")


@pytest.mark.ci
@pytest.mark.parametrize("name", sorted(PROGRAMS - MEASURE_NOTHING))
def test_a_benchmark_still_runs_in_its_smallest_form(name, tmp_path):
    """Beside its peers too, where `make bench` has installed them."""
    out = tmp_path / "results"
    launched = launch(tmp_path, script, ROOT / "benchmarks" / f"{name}.py", "--smoke", out)
    launched.finish(timeout=300)
    results = list(out.glob("*.json"))
    assert results or "peers are not measured" in launched.text()
    assert all(json.loads(path.read_text(encoding="utf-8")) for path in results)
    if "peers are not measured" in launched.text():
        pytest.skip(f"ran without its peers: {launched.text().strip()}")


@pytest.mark.parametrize(("distribution", "mean_words"), [("coco", 10.5), ("cc12m", 20.2)])
def test_a_batch_has_the_lengths_of_its_distribution(distribution, mean_words):
    from lengths import CONTEXT, batch_lengths

    lengths = batch_lengths(distribution, 32, seed=0)
    words = [(length - 2) / 1.25 for length in lengths]
    assert statistics.mean(words) == pytest.approx(mean_words, rel=0.06)
    assert max(lengths) <= CONTEXT
    assert lengths != batch_lengths(distribution, 32, seed=1)
    assert sorted(lengths) == sorted(batch_lengths(distribution, 32, seed=1))


def test_the_worst_case_is_all_of_the_context():
    from lengths import batch_lengths

    assert batch_lengths("full", 3, seed=0) == [76, 76, 76]


def test_the_demos_captions_are_short():
    from lengths import batch_lengths

    assert 5 < statistics.mean(batch_lengths("demo", 32, seed=0)) < 15


def test_the_rule_of_engines_is_that_of_the_table():
    """`engine="auto"` takes ONNX Runtime up to the width at which it was never behind."""
    from grr_coca.infer.choose_engine import MAX_ONNX_WIDTH

    rows = json.loads((ROOT / "benchmarks" / "results" / "engines.json").read_text())["rows"]
    behind = [row["width"] for row in rows if row["precision"] == "fp32" and row["times_as_fast"] < 1]
    never_behind = [row["width"] for row in rows if row["width"] < min(behind, default=10**9)]
    assert max(never_behind) == MAX_ONNX_WIDTH


def test_a_cell_of_captions_that_does_not_exist_is_named(monkeypatch, tmp_path):
    import captioning

    monkeypatch.setattr(captioning, "Worker", lambda *_: pytest.fail("nothing is to be measured"))
    monkeypatch.setattr(sys, "argv", ["captioning.py", "--only", "sampling-8-20,beam-9-20", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no cell beam-9-20; there are sampling-1-20, "):
        captioning.main()


def test_training_rows_of_another_machine_or_number_of_threads_do_not_stay(tmp_path):
    from machine import machine
    from training import previous

    path = tmp_path / "training.json"
    path.write_text(json.dumps({"machine": machine(), "threads": 2, "rows": {"full-fp32": {}}}))
    assert (previous(path, 2), previous(path, 1)) == ({"full-fp32": {}}, {})


def test_a_training_is_shortened_and_nothing_else_changes(tmp_path):
    from busy import RECIPE, of_steps

    from grr_coca.train.recipe import load_recipe, save_recipe

    whole = load_recipe(RECIPE)
    save_recipe(of_steps(whole, 7), tmp_path / "recipe.yaml")
    shortened = load_recipe(tmp_path / "recipe.yaml")
    assert shortened.schedule.steps == 7
    assert replace(shortened, schedule=whole.schedule) == whole


def test_engines_take_turns():
    from engines import in_turn, ratio

    order = []
    seconds = in_turn({side: (lambda side=side: order.append(side)) for side in ("torch", "fp32")}, (2, 2))
    assert order == ["torch", "fp32"] * 3
    assert {side: len(found) for side, found in seconds.items()} == {"torch": 2, "fp32": 2}
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2
