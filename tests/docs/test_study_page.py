"""Pages that tell of studies hold what the ledgers say, whatever state a study is in."""

from pathlib import Path

import pytest

from grr_coca.study.ledger import ledger_files
from synthetic_study import plan, rows_of, write_study

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = (DOCS / "study.md", DOCS / "further-studies.md")
PAIR = ("baseline_coca", "grr_coca")
PLACES = "".join(
    f"<!-- study s {part} -->\n<!-- end -->\n" for part in ("short", "answer", "effects", "curves", "cost")
)


@pytest.fixture
def script(monkeypatch):
    """The script, imported."""
    monkeypatch.syspath_prepend(DOCS)
    import study_page

    return study_page


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_hold_what_the_ledgers_say(script, path):
    text = path.read_text(encoding="utf-8")
    assert script.PLACE.search(text)
    assert script.published(text) == text, "run `python docs/study_page.py`"


def test_figures_are_drawn_from_the_newest_ledger(script):
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    folders = {asked.folder for asked in script.asked_for(text) if ledger_files(ROOT / asked.folder)}
    marks = {script.Asked(folder).name: f"ledger {script.ledger_digest([ROOT / folder])}" for folder in folders}
    marks["overview"] = f"ledger {script.ledger_digest(script.overview_folders(ROOT))}"
    shown = {match["path"] for match in script.FIGURE.finditer(text)}
    assert shown
    for path in shown:
        name = max((name for name in marks if f"/{name}-" in path), key=len)
        assert marks[name] in (DOCS / path).read_text(encoding="utf-8"), "run `python docs/study_page.py`"
    drawn = {str(path.relative_to(DOCS)) for path in (DOCS / "study").glob("*.svg")}
    assert drawn <= shown, "figures that no page shows"


def test_a_study_in_a_folder_of_studies_is_named_by_both(script):
    assert script.Asked("studies/tokens16/600").name == "tokens16-600"


def test_a_place_may_ask_for_a_comparison_with_another_arm(script, tmp_path):
    write_study(tmp_path / "s", plan(PAIR), rows_of(PAIR, range(8)))
    text = script.published("<!-- study s answer over grr_coca -->\n<!-- end -->\n", tmp_path)
    assert "**Baseline CoCa is worse than GRR-CoCa in all 6 primary endpoints.** 8 seeds." in text
    script.draw_figures(tmp_path, script.Asked("s", "grr_coca"), tmp_path / "drawn")
    shown = {match["path"].removeprefix("study/") for match in script.FIGURE.finditer(text)}
    assert "s-over-grr_coca-endpoints.svg" in shown
    assert shown <= {path.name for path in (tmp_path / "drawn").iterdir()}


def test_a_place_may_ask_about_one_arm_alone(script, tmp_path):
    arms = (*PAIR, "baseline_rms", "baseline_geglu")
    write_study(tmp_path / "s", plan(arms), rows_of(arms, range(8)))
    places = "<!-- study s headline of baseline_rms -->\n<!-- end -->\n"
    places += "<!-- study s effects of baseline_rms over baseline_geglu -->\n<!-- end -->\n"
    text = script.published(places, tmp_path)
    assert "between Baseline + RMSNorm and Baseline CoCa is shown" in text
    assert "over Baseline + GEGLU in %" in text
    assert "GRR-CoCa" not in text
    assert "(study/s-of-baseline_rms-over-baseline_geglu-effects-after-pretraining.svg)" in text


def test_studies_stand_side_by_side_with_stars_where_a_difference_is_shown(script, monkeypatch, tmp_path):
    monkeypatch.setattr("study_overview.SETTINGS", {"one": "few pairs", "two": "many pairs", "three": "not run"})
    write_study(tmp_path / "one", plan(PAIR), rows_of(PAIR, range(8)))
    write_study(tmp_path / "two", plan(PAIR), rows_of(PAIR, range(3)))
    text = script.published("<!-- studies short -->\n<!-- end -->\n<!-- studies full -->\n<!-- end -->\n", tmp_path)
    short = [line for line in text.splitlines() if line.startswith("|")][:4]
    assert "CoCa loss after pretraining" in short[0]
    assert "CoCa loss after fine-tuning" in short[0]
    assert short[2].startswith("| few pairs")
    assert short[2].count("*") == 2
    assert short[3].startswith("| many pairs"), "studies without rows are left out"
    assert "*" not in short[3], "three seeds show nothing"
    shown = {match["path"].removeprefix("study/") for match in script.FIGURE.finditer(text)}
    assert shown == {path.name for path in script.draw_overview(tmp_path, tmp_path / "drawn")}


def test_a_study_that_was_not_run_says_so(script, tmp_path):
    assert script.published(PLACES, tmp_path).count("This study has not been run yet.") == 5


def test_a_study_without_runs_says_how_far_it_is(script, tmp_path):
    write_study(tmp_path / "s", plan(PAIR), rows_of(PAIR, [100], kind="trial"))
    text = script.published(PLACES, tmp_path)
    assert "No answer yet" in text
    assert "0 of 8 seeds are done; of all arms, 0 of 64 stages" in text
    assert "![" not in text
    assert "|" not in text, "a table of nothing tells nothing"


def test_half_a_study_says_how_many_seeds_it_has(script, tmp_path):
    write_study(tmp_path / "s", plan(PAIR), rows_of(PAIR, range(3)))
    text = script.published(PLACES, tmp_path)
    assert "Not finished: of the two, 3 of 8 seeds are done; of all arms, 24 of 64 stages." in text
    assert "not enough seeds to decide" in text


def test_a_finished_study_has_its_table_and_figures(script, tmp_path):
    write_study(tmp_path / "s", plan(PAIR), rows_of(PAIR, range(8)))
    text = script.published(PLACES, tmp_path)
    assert text == script.published(text, tmp_path), "what is written is replaced"
    assert "**GRR-CoCa is better than Baseline CoCa in all 6 primary endpoints.** 8 seeds." in text
    assert "| CoCa loss" in text
    assert "| −7.15 |" in text.replace("  ", " ").replace("  ", " ")
    script.draw_figures(tmp_path, script.Asked("s"), tmp_path / "drawn")
    shown = {match["path"].removeprefix("study/") for match in script.FIGURE.finditer(text)}
    assert shown == {path.name for path in (tmp_path / "drawn").iterdir()}
    assert all("</svg>\n<!-- drawn from the ledger" in path.read_text() for path in (tmp_path / "drawn").iterdir())


def test_models_at_several_rates_are_compared_at_their_best(script, tmp_path):
    rates = {"baseline_coca": (0.003, 0.006), "grr_coca": (0.003, 0.006)}
    arms = [
        {"name": f"{preset}_{rate}", "title": f"{title}, {rate}", "preset": preset, "overrides": {"optimizer.lr": rate}}
        for (preset, of_preset), title in zip(rates.items(), ("Baseline CoCa", "GRR-CoCa"), strict=True)
        for rate in of_preset
    ]
    names = [arm["name"] for arm in arms]
    content = {**plan(PAIR, 4), "arms": arms, "baseline": names[0]}
    write_study(tmp_path / "s", content, rows_of(names[:3], range(4)))
    place = "<!-- study s rates -->\n<!-- end -->\n"
    assert "No seed has every rate of both models yet." in script.published(place, tmp_path)
    script.open_study.cache_clear()
    write_study(tmp_path / "s", content, rows_of(names, range(4)))
    text = script.published(place, tmp_path)
    assert "best against best: GRR-CoCa at 0.00" in text
    shown = {match["path"].removeprefix("study/") for match in script.FIGURE.finditer(text)}
    assert shown == {"s-rates-grr-coca.svg"}
    script.draw_figures(tmp_path, script.Asked("s"), tmp_path / "drawn")
    assert shown <= {path.name for path in (tmp_path / "drawn").iterdir()}
