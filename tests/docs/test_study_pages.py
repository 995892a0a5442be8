"""Reports on studies hold what the ledgers say, whatever state a study is in."""

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from synthetic_study import STAGES, plan, rows_of, write_study

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "studies"
PAIR = ("baseline_coca", "grr_coca")
GENERATED = "<!-- Everything below is written by studies/write_pages.py. -->\n"
REPORTED = {path.parent for path in STUDIES.rglob("README.md") if GENERATED in path.read_text(encoding="utf-8")}
QUICK = {STUDIES / "primary" / "optimizer", STUDIES / "tokens16" / "rates"}
SHOWN = re.compile(r"\]\((?P<path>[\w/-]+\.svg)\)")


@pytest.fixture
def script(monkeypatch):
    """The script, imported."""
    monkeypatch.syspath_prepend(STUDIES)
    import write_pages

    return write_pages


LONG = {"variants"}
"""Reports that take minutes."""


def study(folder, arms, rows, **changes):
    """A folder with a plan, its recipes and rows."""
    write_study(folder, {**plan(), "arms": list(arms), **changes}, rows)
    for stage in STAGES:
        shutil.copy(STUDIES / "primary" / f"{stage}.yaml", folder)
    return folder


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(
            folder, marks=[] if folder in QUICK else pytest.mark.slow if folder.name in LONG else pytest.mark.ci
        )
        for folder in sorted(REPORTED)
    ],
    ids=lambda folder: folder.relative_to(STUDIES).as_posix(),
)
def test_a_report_holds_what_its_ledger_says(script, folder):
    assert script.GENERATED == GENERATED
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert script.with_report(text, folder) == text, "run `make study-docs`"


@pytest.mark.ci
def test_the_tables_of_all_studies_hold_what_the_ledgers_say(script):
    for page in script.WITH_TABLES:
        text = page.read_text(encoding="utf-8")
        assert script.with_tables(text) == text, "run `make study-docs`"


def test_figures_are_drawn_from_the_newest_ledgers(script):
    for folder in REPORTED:
        page = folder / "README.md"
        shown = {page.parent / match["path"] for match in SHOWN.finditer(page.read_text(encoding="utf-8"))}
        mark = f"<!-- drawn from the ledger {script.ledger_digest([folder])} -->"
        assert [path for path in shown if mark not in path.read_text(encoding="utf-8")] == [], "run `make study-docs`"
        assert set((page.parent / "figures").glob("*.svg")) <= shown, "figures that no page shows"


def test_rows_of_several_versions_are_named_on_the_page(script, tmp_path):
    rows = rows_of(PAIR, range(8))
    text = script.report(study(tmp_path / "s", PAIR, [replace(rows[0], commit="older"), *rows[1:]]))
    assert "## Notes on the ledger\n\n- rows come from 2 commits: 63 of " in text
    assert "Notes on the ledger" not in script.report(study(tmp_path / "t", PAIR, rows))


def test_a_second_baseline_has_a_section_and_figures_of_its_own(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "OTHER_BASELINES", {"s": ("grr_coca",)})
    folder = study(tmp_path / "s", PAIR, rows_of(PAIR, range(8)))
    text = script.report(folder)
    assert "## The answer over GRR-CoCa" in text
    assert "**Baseline CoCa is worse than GRR-CoCa in all 6 primary endpoints.** 8 seeds." in text
    assert "(figures/over-grr_coca-endpoints.svg)" in text


def test_val_and_test_are_joined_by_their_pairs(script):
    (row,) = rows_of(["grr_coca"], [0])[:1]
    losses = {"contrastive_loss": 1.0, "captioning_loss": 2.0, "coca_loss": 5.0}
    double = {name: 2 * value for name, value in losses.items()}
    metrics = {"test": losses | {"num_pairs": 300.0}, "val": double | {"num_pairs": 100.0}, "test_concept": {}}
    together = script._with_together(replace(row, metrics=metrics)).metrics[script.TOGETHER]
    expected = {"contrastive_loss": 1.25, "captioning_loss": 2.5, "coca_loss": 6.25, "perplexity": math.exp(2.5)}
    assert together == pytest.approx(expected)
    alone = replace(row, metrics={"test": metrics["test"]})
    assert script._with_together(alone) == alone


def test_runs_of_two_modes_are_counted(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "PLATEAUS", {"s": script.Plateau("R@1", 0.125, "RoPE")})

    def with_recall(row):
        left = row.arm == "grr_coca" and row.seed != 5
        test = {**row.metrics["test"], "R@1": 0.5 + 0.01 * row.seed if left else 0.125 + 0.005 * row.seed}
        return replace(row, metrics={**row.metrics, "test": test})

    text = script.report(study(tmp_path / "s", PAIR, map(with_recall, rows_of(PAIR, range(8)))))
    assert "**7 of 8 models with RoPE left the plateau, and 0 of 8 without.** 8 seeds." in text
    assert "guesses has R@1, text to image 12.5 %. One above 18.75 % has left this plateau" in text
    table = text.partition("left the plateau |")[2].partition("![")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    cells = {name: told for name, *told in lines}
    assert cells["GRR-CoCa"] == ["7 of 8", "50.0 to 57.0", "15.0"]
    assert cells["Baseline CoCa"] == ["0 of 8", "–", "12.5 to 16.0"]
    assert "is better than" not in text, "no verdict from means"
    assert "CoCa loss after pretraining" in text, "the tables stay"


def test_a_study_may_ask_about_several_pairs_of_arms(script, monkeypatch, tmp_path):
    arms = (*PAIR, "baseline_rms", "baseline_geglu")
    monkeypatch.setattr(script, "PAIRS", {"s": (script.Pair("baseline_rms", "baseline_geglu"),)})
    text = script.report(study(tmp_path / "s", arms, rows_of(arms, range(8))))
    (row,) = [line for line in text.splitlines() if line.startswith("| Baseline + RMSNorm over Baseline + GEGLU")]
    assert row.count(" to ") == 6, "an interval for each endpoint"
    assert "## The answer" not in text


@pytest.mark.ci
def test_models_at_several_rates_are_compared_at_their_best(script, tmp_path):
    arms = [
        {"name": f"{preset}_{rate}", "title": f"{title}, {rate}", "preset": preset, "overrides": {"optimizer.lr": rate}}
        for preset, title in zip(PAIR, ("Baseline CoCa", "GRR-CoCa"), strict=True)
        for rate in (0.003, 0.006)
    ]
    rows = rows_of([arm["name"] for arm in arms], range(4))
    folder = study(tmp_path / "s", arms, rows, baseline=arms[0]["name"])
    text = script.report(folder)
    assert "best against best: GRR-CoCa at 0.00" in text
    assert "in which each draw chooses its rates" in text, "these notes tell of this study alone"
    assert "(figures/rates-grr-coca.svg)" in text
    assert "### The same on every split, and in training\n" in text, "of best against best"
    assert "rates-grr-coca.svg" in script.figures(folder)
    assert "enough seeds to decide whether GRR-CoCa is better than Baseline CoCa, each at its best rate" in text


def test_a_study_without_runs_says_how_far_it_is(script, tmp_path):
    assert "This study has not been run yet." in script.report(tmp_path / "none")
    text = script.report(study(tmp_path / "s", PAIR, rows_of(PAIR, [100], kind="trial")))
    assert "No answer yet" in text
    assert "0 of 8 seeds are done; of all arms, 0 of 64 stages" in text
    assert "![" not in text


def test_half_a_study_says_how_many_seeds_it_has(script, tmp_path):
    text = script.report(study(tmp_path / "s", PAIR, rows_of(PAIR, range(3))))
    assert "Not finished: of the two, 3 of 8 seeds are done; of all arms, 24 of 64 stages." in text
    assert "not enough seeds to decide" in text


@pytest.mark.ci
def test_a_finished_study_has_its_tables_and_figures(script, tmp_path):
    folder = study(tmp_path / "s", PAIR, rows_of(PAIR, range(8)))
    text = script.with_report(f"# A study\n\n{GENERATED}old\n", folder)
    assert text.startswith(f"# A study\n\n{GENERATED}\n## The answer\n")
    assert text == script.with_report(text, folder), "what is written is replaced"
    assert "**GRR-CoCa is better than Baseline CoCa in all 6 primary endpoints.** 8 seeds." in text
    assert re.search(r"\| CoCa loss after pretraining .* −7\.15 \|", text)
    assert re.search(r"\| after pretraining, training .* 8 of 8", text)
    shown = {match["path"].removeprefix("figures/") for match in SHOWN.finditer(text)}
    drawn = script.figures(folder)
    assert shown == drawn.keys()
    assert all("</svg>" in svg for svg in drawn.values())
