"""The README is plain in its source, and each number that was measured is that of the file it comes from."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "grr_coca"
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = re.compile(r"[−+]?\d[\d.]*(?= million parameters| %)|[−+]\d[\d.]*")
PERCENT = 100


def card(*keys: str) -> float:
    """A value of the card of the model that ships."""
    value = json.loads((SRC / "model" / "weights" / "icons" / "card.json").read_text(encoding="utf-8"))
    for key in keys:
        value = value[key]
    return value


def change_after_pretraining(study: str, arm: str, baseline: str, metric: str) -> Iterable[float]:
    """The change of a metric in percent, geometric mean over paired seeds, and its 95 % t interval."""
    rows = map(json.loads, (ROOT / study / "runs.jsonl").read_text(encoding="utf-8").splitlines())
    runs = {(row["arm"], row["seed"]): row for row in rows if (row["kind"], row["stage"]) == ("run", "pictograms")}
    seeds = [seed for name, seed in runs if name == arm]
    assert len(seeds) == 8
    logs = {key: np.log(row["metrics"]["test"][metric]) for key, row in runs.items()}
    ratios = np.array([logs[arm, seed] - logs[baseline, seed] for seed in seeds])
    interval = stats.t.interval(0.95, len(ratios) - 1, ratios.mean(), stats.sem(ratios))
    return (PERCENT * np.expm1(x) for x in (ratios.mean(), *interval))


def test_each_measured_number_is_that_of_its_source() -> None:
    thin_lines = card("figures", "test_family_tabler", "text_to_image/R@10", "value")
    best = {"adamw": 0.0015, "rate_curves": 0.012}
    changes = [
        f"{x:+.1f}"
        for study, rate in best.items()
        for x in change_after_pretraining(
            f"studies/{study}/best", f"grr_coca_{rate}", f"baseline_coca_{rate}", "coca_loss"
        )
    ]
    expected = [f"{card('parameters') / 1e6:.1f}", f"{PERCENT * thin_lines:.1f}", *changes]
    told = re.sub(r"\(95 %", "(", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    assert MEASURED.findall(told) == [number.replace("-", "−") for number in expected]


def test_its_source_reads_as_plain_text() -> None:
    assert "<!--" not in README


@pytest.mark.parametrize(("folder", "line"), [(SRC, r"^  (\w+)/ +\S"), (ROOT, r"^(\w+)/ +\S|^(src)/")])
def test_its_layout_names_every_folder(folder: Path, line: str) -> None:
    layout = README.partition("## Layout")[2].partition("##")[0]
    named = ["".join(found) for found in re.findall(line, layout, re.MULTILINE)]
    left_out = {".", "_", "runs"}
    folders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(tuple(left_out))]
    # A folder that is no more may still hold what Python had compiled.
    there = [path.name for path in folders if any(file.suffix != ".pyc" for file in path.rglob("*.*"))]
    assert sorted(named) == sorted(there)
