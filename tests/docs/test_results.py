"""The pages on the models say what the ledgers say, and `studies/check.py` notices when they do not."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
RESULTS = "docs/results.md"


@pytest.fixture(scope="module")
def check():
    """The script, imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "studies")
        import check

        yield check


@pytest.fixture(scope="module")
def claims(check):
    """The settings, and the pieces of each page as the rows fill them."""
    known, pages = check.read_claims()
    return known, {page: [piece.format_map(known) for piece in pieces] for page, pieces in pages.items()}


def test_the_pages_say_what_the_ledgers_say(check, claims):
    wrong = [error for page, wanted in claims[1].items() for error in check.errors_on(page, wanted)]
    assert wrong == [], "see `python studies/check.py --print`"


CHANGES = {
    "number": (r"(?<=[−+])\d+\.\d", lambda found: f"{float(found) + 0.1:.1f}"),
    "sign": (r"[−+](?=\d)", lambda found: "+" if found == "−" else "−"),
    "verdict": (r"\b(lower|higher|no different)\b", lambda found: "higher" if found == "lower" else "lower"),
    "advice": (r"GRR-CoCa|Baseline CoCa", lambda found: "Baseline CoCa" if found == "GRR-CoCa" else "GRR-CoCa"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_any_changed_number_sign_or_verdict_is_noticed(check, claims, kind):
    """In each piece that has places, each number, sign, verdict and advice is changed by itself."""
    text, wanted = " ".join(check.part_of(RESULTS).split()), claims[1][RESULTS]
    pattern, other = CHANGES[kind]
    pieces = [piece for piece, raw in zip(wanted, check.read_claims()[1][RESULTS], strict=True) if "{" in raw]
    tried = 0
    for piece in pieces:
        for place in re.finditer(pattern, piece):
            wrong = piece[: place.start()] + other(place[0]) + piece[place.end() :]
            assert check.errors_of(text.replace(piece, wrong), wanted), wrong
            tried += 1
    assert tried >= 5


def test_a_result_that_no_claim_holds_is_noticed(check, claims):
    text, wanted = check.part_of(RESULTS), claims[1][RESULTS]
    for more in (
        "GRR-CoCa is better.",
        "It falls by 3 %.",
        "It changes by −2.",
        "With 7 of 8 seeds.",
        "No difference.",
    ):
        assert check.errors_of(f"{text} {more}", wanted), more


def test_other_rows_change_what_the_page_must_say(check, claims, monkeypatch):
    known, pages = claims
    swapped = dict(known, adamw=check.Setting("adamw/best", known["adamw"].over, known["adamw"].arms, "adamw/best"))
    wanted = [piece.format_map(swapped) for piece in check.read_claims()[1][RESULTS]]
    lacking = [error for error in check.errors_of(check.part_of(RESULTS), wanted) if error.startswith("does not say")]
    assert any("is higher with AdamW: by 4 %" in error for error in lacking)
    assert any("| AdamW, 600 steps | Baseline CoCa |" in error for error in lacking)
    assert wanted != pages[RESULTS]


def test_words_follow_from_intervals(check):
    logs = ([-0.1, -0.11, -0.09], [0.1, 0.11, 0.09], [-0.1, 0.2, 0.0])
    falls, rises, open_ = (check.Change(np.array(values), "test", "coca_loss", []) for values in logs)
    assert [f"{change:word}" for change in (falls, rises, open_)] == ["lower", "higher", "no different"]
    assert [f"{change:use}" for change in (falls, rises, open_)] == ["GRR-CoCa", "Baseline CoCa", "either"]
    assert f"{falls}" == "−9.5 % (−11.7 to −7.2)"
    assert f"{falls:falls}" == "3 of 3"
    assert f"{check.Change(np.array([0.001, -0.001, 0.0]), 'test', 'coca_loss', []):equal}" == "equal within 2 %"


def test_a_change_with_other_seeds_grows_by_welchs_test(check):
    later, earlier = np.array([-0.10, -0.12, -0.09, -0.11]), np.array([-0.04, -0.05, -0.03])
    growth = check.Growth(later, "test", "coca_loss", [], earlier)
    spreads = later.var(ddof=1) / 4, earlier.var(ddof=1) / 3
    degrees = sum(spreads) ** 2 / (spreads[0] ** 2 / 3 + spreads[1] ** 2 / 2)
    width = stats.t.ppf(0.975, degrees) * sum(spreads) ** 0.5
    assert growth.ends() == pytest.approx((-0.065, -0.065 - width, -0.065 + width))
    assert f"{growth:more}" == "more"
    shrunk, same = (check.Growth(values, "test", "coca_loss", [], earlier) for values in (later + 0.2, later + 0.07))
    assert [f"{shrunk:more}", f"{same:more}"] == ["less", "about as much"]


def test_settings_are_joined_by_seed_or_one_by_one(check, claims):
    parts = [claims[0][name] for name in ("geglu_long", "rope_long", "rms_long")]
    logs = np.array([part["test coca"].logs for part in parts])
    found = {how: check.Joined(how, parts)["test coca"].logs for how in ("mean", "sum", "each")}
    assert found["mean"] == pytest.approx(logs.mean(axis=0))
    assert found["sum"] == pytest.approx(logs.sum(axis=0))
    assert found["each"] == pytest.approx(logs.mean(axis=1))
    with pytest.raises(AssertionError, match="the seeds are"):
        check.Joined("mean", [parts[0], claims[0]["at_middle"]])["test coca"]
    with pytest.raises(AssertionError, match="no rows"):
        check.Joined("mean", parts)["test coca"].over_both()


def test_flags_and_others_make_the_whole(check):
    row = next(iter(check.rows_of("adamw_long/2400_best").values()))
    flags, tokens = check.emojione_flags(), np.array(row["values"]["test_style"]["tokens"])
    parts = [math.log(check.value(row, f"test_style#{which}", "perplexity")) for which in ("flags", "others")]
    whole = math.log(check.value(row, "test_style", "perplexity"))
    assert np.average(parts, weights=[tokens[flags].sum(), tokens[~flags].sum()]) == pytest.approx(whole, rel=1e-4)
    assert flags.sum() == 154
    with pytest.raises(AssertionError, match="batches"):
        check.value(row, "test_style#flags", "coca_loss")


def test_each_draw_of_seeds_chooses_its_rates(check):
    """On true rows, beside the code of the reports, which draws seeds at random; here each draw is counted once."""
    from grr_coca.study.report.grid import GridCurve, best_against_best

    study, rates, seeds = "adamw_long/2400_rates", ("0.00075", "0.0015", "0.003"), (100, 101, 102)
    rows = check.rows_of(study)

    def curve(model: str) -> GridCurve:
        losses = {
            split: tuple(
                tuple(rows[f"{model}_{rate}", seed, "pictograms"]["metrics"][split]["coca_loss"] for seed in seeds)
                for rate in rates
            )
            for split in ("val", "test")
        }
        best = min(range(3), key=lambda i: np.log(losses["val"][i]).mean())
        return GridCurve(arm=model, points=({"rate": 0}, {"rate": 1}, {"rate": 2}), best={"rate": best}, **losses)

    found = best_against_best(curve("grr_coca"), curve("baseline_coca"), seeds)
    change = check.Best(study, *(tuple(f"{model}_{rate}" for rate in rates) for model in ("grr_coca", "baseline_coca")))
    change = change["test coca"]
    mean, *ends = change.ends()
    assert 100 * np.expm1(mean) == pytest.approx(found.effect.change)
    assert 100 * np.expm1(ends) == pytest.approx([found.low, found.high])
    assert f"{change:rates}" == "0.00075 for GRR-CoCa and 0.0015 for Baseline CoCa"
    assert f"{change:agreeing}" == "26 of 27"


def test_a_study_whose_rows_are_not_all_there_has_no_best(check, monkeypatch):
    asked = check.Best("adamw_long/2400_rates", ("grr_coca_0.003",), ("baseline_coca_0.003",))
    assert f"{asked['test coca']:change}" == "−7.6 %"
    with pytest.raises(NotImplementedError):
        format(asked["test coca"], "p")
    all_rows = check.rows_of("adamw_long/2400_rates")
    for lost in ({("grr_coca_0.003", 101)}, {(arm, 102) for arm, _, _ in all_rows}):
        rows = {key: row for key, row in all_rows.items() if key[:2] not in lost}
        monkeypatch.setattr(check, "rows_of", lambda study, rows=rows: rows)
        with pytest.raises(AssertionError, match="lacks"):
            asked["test coca"]


def test_its_numbers_are_those_of_the_reports(check, claims):
    """The script imports nothing of the package; here both are asked for the same."""
    from grr_coca.common.dict_to_dataclass import from_dict
    from grr_coca.study.ledger import Ledger
    from grr_coca.study.plan import Arm, Endpoints, Plan
    from grr_coca.study.report.numbers import study_results
    from grr_coca.study.rows import LedgerRow

    folder = ROOT / "studies" / "adamw" / "best"
    lines = map(json.loads, (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines())
    rows = [from_dict(LedgerRow, line) for line in lines]
    plan = Plan(
        arms=tuple(Arm(name=name) for name in ("baseline_coca_0.0015", "grr_coca_0.0015")),
        baseline="baseline_coca_0.0015",
        seeds=tuple(range(8)),
        pretrain="pictograms.yaml",
        endpoints=Endpoints(primary=("pretraining/coca_loss",)),
        showcase="test",
    )
    (result, *_) = study_results(plan, Ledger(tuple(rows))).arms[0].endpoints
    change = claims[0]["adamw"]["test coca"]
    assert 100 * np.expm1(change.ends()) == pytest.approx([result.effect.change, result.effect.low, result.effect.high])
    assert 100 * np.expm1(change.over_both()) == pytest.approx(result.over_both, abs=0.3)


def test_figures_are_drawn_from_the_newest_ledgers(check):
    text = (ROOT / RESULTS).read_text(encoding="utf-8")
    import draw_results

    for name, studies in draw_results.FIGURES.items():
        assert f"({name})" in text
        mark = f"<!-- drawn from the ledger {draw_results.digest(studies)} -->"
        assert mark in (ROOT / "docs" / name).read_text(encoding="utf-8"), "run `make study-docs`"


def test_the_paper_has_title_version_date_abstract_and_its_claims(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from make_paper import TITLE, page

    text = re.sub(r"<[^>]+>", "", page()).replace("\N{NO-BREAK SPACE}", " ")
    about = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for key in ("version", "date-released"):
        (value,) = re.findall(rf"^{key}: (.+)$", about, re.MULTILINE)
        assert value in text
    assert text.startswith(TITLE)
    assert "icons, 2,000 steps" in text
    assert "img2dataset" not in text, "the archive goes on"
    abstract = text.partition("Abstract.")[2].partition("you train with")[0]
    assert "lower with AdamW: by 4 % after 600 steps" in abstract
    assert "not a reproduction" in abstract
    for heading in ("What the rows say", "Limits", "Methods", "The settings in numbers", "References"):
        assert f"\n{heading}\n" in text or f"{heading}\n" in text, heading
    assert "2602.08071" in text.partition("References")[2]


@pytest.mark.ci
def test_the_paper_has_four_to_six_pages():
    """In a process of its own: WeasyPrint lets Pillow accept truncated images everywhere."""
    code = "import weasyprint; from make_paper import DOCS, page; html = weasyprint.HTML(string=page(), base_url=DOCS)"
    said = subprocess.run(
        [sys.executable, "-c", f"{code}; print(len(html.render().pages))"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "docs")},
        check=False,
    )
    if "No module named 'weasyprint'" in said.stderr or "cannot load library" in said.stderr:  # Pango
        pytest.skip("make paper installs it")
    assert said.returncode == 0, said.stderr
    assert 4 <= int(said.stdout) <= 6
