"""What the benchmarks conclude, on inputs worked out by hand, and that each still runs; what they measure needs a quiet
machine."""

import json
import runpy
import statistics
import sys
from pathlib import Path

import pytest
from processes import launch, script

ROOT = Path(__file__).parents[1]
MEASURE_NOTHING = {"contestants", "training_contestants", "publish"}
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
def test_benchmark_runs_in_its_smallest_form(name, tmp_path):
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
def test_batch_has_the_lengths_of_its_distribution(distribution, mean_words):
    from training import CONTEXT, batch_lengths

    lengths = batch_lengths(distribution, 32, seed=0)
    words = [(length - 2) / 1.25 for length in lengths]
    assert statistics.mean(words) == pytest.approx(mean_words, rel=0.06)
    assert max(lengths) <= CONTEXT
    assert lengths != batch_lengths(distribution, 32, seed=1)
    assert sorted(lengths) == sorted(batch_lengths(distribution, 32, seed=1))


def test_engine_choice_matches_the_table():
    """`engine="auto"` takes ONNX Runtime up to the width at which it was never behind."""
    from grr_coca.infer.load import MAX_ONNX_WIDTH

    rows = json.loads((ROOT / "benchmarks" / "results" / "engines.json").read_text())["rows"]
    behind = [row["width"] for row in rows if row["precision"] == "fp32" and row["times_as_fast"] < 1]
    never_behind = [row["width"] for row in rows if row["width"] < min(behind, default=10**9)]
    assert max(never_behind) == MAX_ONNX_WIDTH


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("captioning", "sampling-8-20,beam-9-20", "no beam-9-20; there are greedy-1-20, "),
        ("training", "coco-fp16", "no coco-fp16; there are full-fp32, "),
        ("serving", "b32,b64", "no b64; there are icons, b32"),
    ],
)
def test_unknown_part_is_named(monkeypatch, tmp_path, capsys, name, argument, message):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--only", argument, "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name="__main__")
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_sides_alternate_until_the_time_is_up():
    from harness import in_turn, ratio

    order = []
    sides = {side: (lambda side=side: order.append(side) or 1.0) for side in ("torch", "onnx")}
    assert in_turn(sides, 2) == {"torch": [1, 1], "onnx": [1, 1]}
    assert order == ["torch", "onnx", "torch", "onnx"]
    assert in_turn(sides, 9, fewest=3, within=0) == {"torch": [1] * 3, "onnx": [1] * 3}
    assert in_turn(sides, 9, fewest=3, within=3600) == {"torch": [1] * 9, "onnx": [1] * 9}
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2
