"""Pages on the models match the ledgers, and `studies/check.py` reports where they do not."""

import itertools
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
def changes(check):
    """The module of the settings."""
    import changes

    return changes


@pytest.fixture(scope="module")
def known(check):
    """The settings by name."""
    return check.read_settings()


PAGES = sorted(
    path.relative_to(ROOT / "studies" / "pages").as_posix() for path in (ROOT / "studies/pages").rglob("*.txt")
)


@pytest.mark.parametrize("name", PAGES)
def test_page_matches_the_ledgers(check, known, name):
    page = ROOT / name.removesuffix(".txt")
    assert [*check.errors_of_page(page, check.texts()[page], known)] == [], "see `python studies/check.py`"


CHANGES = {
    "number": (r"(?<=[−+])\d+\.\d", lambda found: f"{float(found) + 0.1:.1f}"),
    "sign": (r"[−+](?=\d)", lambda found: "+" if found == "−" else "−"),
    "verdict": (r"\b(lower|higher|no different)\b", lambda found: "higher" if found == "lower" else "lower"),
    "advice": (r"GRR-CoCa|Baseline CoCa", lambda found: "Baseline CoCa" if found == "GRR-CoCa" else "GRR-CoCa"),
    "sentence": (r"\. (?=[A-Z])", lambda _: ". GRR-CoCa outperforms Baseline CoCa everywhere. "),
    "limit": (r"- \*\*[^*]+\*\* [^.]+\.", lambda _: "- "),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_page_fails(check, kind, tmp_path, monkeypatch):
    results = (ROOT / RESULTS).read_text(encoding="utf-8")  # as the rows give it: test_page_matches_the_ledgers
    monkeypatch.setattr(check, "ROOT", tmp_path)
    pattern, other = CHANGES[kind]
    places = [*re.finditer(pattern, results)]
    assert len(places) >= 5
    for place in places[:: max(1, len(places) // 20)]:
        changed = results[: place.start()] + other(place[0]) + results[place.end() :]
        (tmp_path / "page.md").write_text(changed, encoding="utf-8")
        assert [*check.differences(tmp_path / "page.md", results)], changed[place.start() - 20 : place.end() + 20]


@pytest.mark.parametrize(
    "sentence",
    ["It is better.", "It falls by 3 %.", "It changes by −2.", "With 7 of 8 seeds.", "There is no difference."],
)
def test_result_outside_a_placeholder_fails(check, sentence):
    assert [*check.errors_of_text(f"Text. {sentence}")]
    assert not [*check.errors_of_text(f"Text. {{given[{sentence}]}}")]


TRUE = (
    "With AdamW, after {adamw:steps} steps, GRR-CoCa's CoCa loss on `test` is {adamw[test coca]:by} "
    "({adamw[test coca]:ci})."
)
TABLE = """| setting, % | seeds | CoCa loss on `test` | perplexity |
|---|--:|--:|--:|
| [AdamW](../studies/adamw/best/README.md) | {adamw:n} | {adamw[test coca]:cell} | {adamw[test perplexity]:cell} |
| [longer](adamw_long/2400_best/README.md) | {long:n} | {long[test coca]:cell} | {long[test perplexity]:cell} |
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("With AdamW", "With Muon"),
        ("is {adamw[", "is {muon["),
        ("({adamw[", "({pooler["),
        ("{adamw:steps}", "{long:steps}"),
        ("GRR-CoCa's", "Baseline CoCa's"),
        (".", " than GRR-CoCa's."),
        ("CoCa loss", "perplexity"),
        ("CoCa loss", "contrastive loss"),
        ("on `test`", "on `val`"),
        ("on `test`", "on `val` and `test` together"),
        ("on `test`", "in training"),
        ("test coca", "style coca"),
        ("| {adamw[test coca]", "| {long[test coca]"),
        ("{long[test perplexity]", "{long[test coca]"),
        ("{long[test coca]:cell}", "{long[val coca]:cell}"),
        ("{long:n}", "{longest:n}"),
        ("| perplexity", "| contrastive loss"),
        ("adamw/best/README", "tokens16/600/README"),
        ("[longer]", "[Muon]"),
    ],
)
def test_words_that_contradict_their_rows_fail(check, known, old, new):
    for text in (TRUE, TABLE):
        assert [*check.errors_of_meaning(text, known)] == []
    assert old in TRUE + TABLE
    changed = [text.replace(old, new, 1) for text in (TRUE, TABLE)]
    assert [error for text in changed for error in check.errors_of_meaning(text, known)]


ADAMW, LONG, LASTING = "{adamw[test coca]}", "{long[test coca]}", "{lasting[test coca]}"


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("Baseline CoCa with Muon is {CROSS:by} than GRR-CoCa with AdamW.", "AdamW", "Muon"),
        (
            "| | loss, % |\n|---|--:|\n| Baseline CoCa, positions | {slow_positions[test coca]:cell} |",
            "Baseline CoCa",
            "GRR-CoCa",
        ),
        ("| | GRR-CoCa, Muon |\n|---|--:|\n| loss | {muon[test coca]:loss} |", "Muon", "AdamW"),
        ("| | GRR-CoCa, Muon |\n|---|--:|\n| loss | {muon[test coca]:loss} |", "GRR-CoCa", "Baseline CoCa"),
        ("| | GRR-CoCa, Muon |\n|---|--:|\n| loss | {muon[test coca]:loss} |", "|---|--:|\n", ""),
        ("The CoCa loss is {muon[test coca]:by} with Muon and {adamw[test coca]:by} with AdamW.", "AdamW", "Muon"),
        ("GRR-CoCa's CoCa loss is {adamw_settings[test coca]:all}.", "GRR-CoCa", "Baseline CoCa"),
        ("GRR-CoCa's CoCa loss over that of Baseline CoCa changes.", "Baseline CoCa", "GRR-CoCa"),
        (f"{ADAMW} after {{adamw:steps}} steps and {LONG} after {{long:steps}}.", ADAMW, LONG),
        (f"{ADAMW} after {{adamw:steps}} steps.", " steps", " epochs"),
        (f"After {{long:steps}} steps it is {LONG}, and the ratio is {LASTING}.", "{long:steps}", "{adamw:steps}"),
        (
            f"{ADAMW}, {LONG} at {{adamw:rate}} and {{long:rate}}.",
            "{adamw:rate} and {long:rate}",
            "{long:rate} and {adamw:rate}",
        ),
        (f"A fall in {{adamw[test coca]:falls}}, {ADAMW}.", "A fall", "A rise"),
        (f"{ADAMW}: it is here.", "it is", "it is not"),
        (f"That it is so {{kept[test coca]:shown}}, {ADAMW}.", "{kept[test coca]:shown}", "is shown"),
        (f"It is {ADAMW}.", "is", "is nearly"),
        (f"By {{adamw_settings[test coca]:range}} % and {ADAMW}.", "%", "points"),
        ("The CoCa loss with RoPE is {rope_long[test coca]}.", "RoPE", "GEGLU"),
        ("GEGLU {every_geglu[test coca]:lowers} settings.", "GEGLU", "RoPE"),
        ("With a captioning pooler, it is {pooler[test coca]}.", "With a captioning pooler", "Here"),
        (f"Without a pooler, {ADAMW}.", "Without", "With"),
        (
            "R@1 goes from Baseline CoCa to GRR-CoCa, {adamw[test R@1]:backwards} %.",
            "Baseline CoCa to GRR-CoCa",
            "GRR-CoCa to Baseline CoCa",
        ),
        (f"{{flags}} of {{emojione}} captions, {ADAMW}.", "{flags} of {emojione}", "{emojione} of {flags}"),
        ("| seeds | CoCa loss, % |\n|---|--:|\n| {adamw:n} | {adamw[test coca]:cell} |", "%", "points"),
    ],
)
def test_models_and_optimizers_match_the_rows(check, known, text, old, new):
    text = text.replace("CROSS", "muon_baseline_of_adamw_grr[test coca]")
    assert [*check.errors_of_meaning(text, known)] == []
    assert [*check.errors_of_meaning(text.replace(old, new), known)]


@pytest.mark.parametrize("typed", ["lowers the loss", "is at a rate too high"])
def test_commands_and_rates_follow_from_rows(check, known, typed):
    assert check.filled("{muon_falls[test coca]:verb}", known) == "lowers"
    assert check.filled("{too_high[tokens16/1200 tokens16/rates]}", known) == "too high for GRR-CoCa"
    assert [*check.errors_of_text(f"Muon {typed}.")]


def test_bold_sentence_of_a_study_must_be_listed(check):
    text = "# Study\n\n**The parts do nothing.** More."
    assert [*check.errors_of_plain(text, is_of_study=True)]
    assert not [*check.errors_of_plain(text.replace("*", ""), is_of_study=True)]


@pytest.mark.parametrize("row", [r"\| \[twemoji\].*\n", r"\| \[Muon, \{fresh:steps\}.*\n"])
def test_table_shows_all_settings_of_its_claim(check, known, row):
    text = check.texts()[ROOT / RESULTS]
    (section,) = (section for section in re.split(r"\n(?=#)", text) if re.search(row, section))
    assert [*check.errors_of_meaning(re.sub(row, "", section, count=1), known)]


@pytest.mark.parametrize(
    "sentence",
    ["GRR-CoCa generalises.", "Both models are on a par.", "Its loss is {given[lower]}: {adamw[test coca]}."],
)
def test_sentence_without_rows_must_be_listed(check, sentence):
    text = check.texts()[ROOT / RESULTS]
    assert [*check.errors_of_plain(text)] == []
    assert [*check.errors_of_plain(text.replace("## Limits", f"{sentence}\n\n## Limits"))]


def test_listed_sentences_and_settings_are_on_the_page(check, monkeypatch):
    assert [*check.unsaid(), *check.pages_without_text()] == []
    texts = check.texts()
    for removed in ("The sizes of the changes vary.", "{lasting[test coca]"):
        assert removed in texts[ROOT / RESULTS]
        changed = {page: text.replace(removed, "{adamw[test coca]") for page, text in texts.items()}
        monkeypatch.setattr(check, "texts", lambda changed=changed: changed)
        assert [*check.unsaid()]


def test_other_rows_require_other_statements_on_the_page(check, changes, known):
    adamw = known["adamw"]
    swapped = changes.Setting(adamw.study, adamw.over, adamw.arms, adamw.study)
    group = changes.Group({**known["family"].settings, "adamw": swapped})
    (row,) = re.findall(r"^\| \[AdamW, \{adamw:steps\} steps\].*$", check.texts()[ROOT / RESULTS], re.MULTILINE)
    filled = check.filled(row, {**known, "adamw": swapped, "family": group})
    assert re.search(r"\| \*\*Baseline CoCa\*\* \| \+\d.*higher \|$", filled)


def test_words_follow_from_intervals(changes):
    logs = ([-0.1, -0.11, -0.09], [0.1, 0.11, 0.09], [-0.1, 0.2, 0.0])
    falls, rises, open_ = (changes.Change(np.array(values), "test", "coca_loss", []) for values in logs)
    assert [f"{change:word}" for change in (falls, rises, open_)] == ["lower", "higher", "no different"]
    assert [f"{change:use}" for change in (falls, rises, open_)] == [
        "GRR-CoCa, tentatively",
        "Baseline CoCa, tentatively",
        "either",
    ]
    assert f"{falls}" == "−9.5 % (−11.7 to −7.2)"
    assert f"{falls:falls}" == "3 of 3"
    assert f"{changes.Change(np.array([0.001, -0.001, 0.0]), 'test', 'coca_loss', []):equal}" == "equal within 2 %"
    assert changes.Change(np.full(8, -0.1), "test", "coca_loss", []).sign_flip_p() == 2 / 256


def test_growth_uses_welchs_test(changes):
    later, earlier = np.array([-0.10, -0.12, -0.09, -0.11]), np.array([-0.04, -0.05, -0.03])
    before = changes.Change(earlier, "test", "coca_loss", [])
    growth = changes.Growth(later, "test", "coca_loss", [], earlier=before)
    spreads = later.var(ddof=1) / 4, earlier.var(ddof=1) / 3
    degrees = sum(spreads) ** 2 / (spreads[0] ** 2 / 3 + spreads[1] ** 2 / 2)
    width = stats.t.ppf(0.975, degrees) * sum(spreads) ** 0.5
    assert growth.ends() == pytest.approx((-0.065, -0.065 - width, -0.065 + width))
    assert f"{growth:word}" == "lower"


def test_joined_settings_match_their_parts(changes, known):
    parts = [known[name] for name in ("geglu_long", "rope_long", "rms_long")]
    logs = np.array([part["test coca"].logs for part in parts])
    found = {how: changes.Joined(how, parts)["test coca"].logs for how in ("mean", "sum", "each")}
    assert found["mean"] == pytest.approx(logs.mean(axis=0))
    assert found["sum"] == pytest.approx(logs.sum(axis=0))
    assert found["each"] == pytest.approx(logs.mean(axis=1))
    with pytest.raises(AssertionError, match="the seeds are"):
        changes.Joined("mean", [parts[0], known["at_middle"]])["test coca"]


def test_code_cancels_in_the_mean_of_both_contrasts(known):
    """Rows of the arms that one commit made are added with both signs equally often."""
    low, high = known["recipe_low"], known["recipe_high"]
    assert (
        f"{low:commits of arms}" == f"{high:commits of over}" != f"{low:commits of over}" == f"{high:commits of arms}"
    )
    logs = known["recipe_both"]["test coca"].logs
    assert logs == pytest.approx((low["test coca"].logs + high["test coca"].logs) / 2)


def test_holm_matches_the_package(changes):
    from grr_coca_study.statistics import holm

    p_values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert [*dict(sorted(changes.holm(p_values).items())).values()] == pytest.approx(
        holm(np.array([*p_values.values()]))
    )


def test_flags_and_other_captions_are_all_captions(changes):
    row = next(iter(changes.rows_of("adamw_long/2400_best").values()))
    flags, tokens = changes.emojione_flags(), np.array(row["values"]["test_style"]["tokens"])
    parts = [math.log(changes.value(row, f"test_style#{which}", "perplexity")) for which in ("flags", "others")]
    whole = math.log(changes.value(row, "test_style", "perplexity"))
    assert np.average(parts, weights=[tokens[flags].sum(), tokens[~flags].sum()]) == pytest.approx(whole, rel=1e-4)
    assert flags.sum() == 154
    with pytest.raises(AssertionError, match="batches"):
        changes.value(row, "test_style#flags", "coca_loss")


def test_each_draw_of_seeds_chooses_its_rates(changes):
    """On true rows, next to a plain loop over all draws of three seeds."""
    study, rates, seeds = "adamw_long/2400_rates", ("0.00075", "0.0015", "0.003"), (100, 101, 102)
    rows = changes.rows_of(study)

    def log_at_best(model: str, draw: tuple[int, ...]) -> tuple[str, float]:
        def mean(split: str, rate: str) -> float:
            found = [rows[f"{model}_{rate}", seed, "pictograms"]["metrics"][split]["coca_loss"] for seed in draw]
            return float(np.log(found).mean())

        best = min(rates, key=lambda rate: mean("val", rate))
        return best, mean("test", best)

    models = ("grr_coca", "baseline_coca")
    drawn = [[log_at_best(model, draw) for model in models] for draw in itertools.product(seeds, repeat=3)]
    chosen = [log_at_best(model, seeds) for model in models]
    best = changes.Best([study], ("grr_coca_.*", "baseline_coca_.*"))
    change = best["test coca"]
    mean, *ends = change.ends()
    assert mean == pytest.approx(chosen[0][1] - chosen[1][1])
    found = [ours[1] - theirs[1] for ours, theirs in drawn]
    assert ends == pytest.approx(np.quantile(found, [0.025, 0.975], method="inverted_cdf"))
    assert [rate for rate, _ in chosen] == ["0.00075", "0.0015"]
    assert f"{change:rates}" == f"{best:rates}" == "0.00075 for GRR-CoCa and 0.0015 for Baseline CoCa"
    assert f"{change:agreeing}" == "26 of 27"


def test_incomplete_curve_has_no_best_rate(changes, monkeypatch):
    curve = changes.Best(["adamw_long/2400_rates"], ("grr_coca_0.003", "baseline_coca_0.003"))
    assert f"{curve['test coca']:change}" == "−7.6 %"
    with pytest.raises(NotImplementedError):
        format(curve["test coca"], "p")
    all_rows = changes.rows_of("adamw_long/2400_rates")
    for lost in ({("grr_coca_0.003", 101)}, {(arm, 102) for arm, _, _ in all_rows}):
        rows = {key: row for key, row in all_rows.items() if key[:2] not in lost}
        monkeypatch.setattr(changes, "rows_of", lambda study, rows=rows: rows)
        with pytest.raises(AssertionError, match="lacks"):
            curve["test coca"]


def test_numbers_match_the_reports(known):
    """The script imports nothing of the package; both must compute the same numbers."""
    from grr_coca.common.dict_to_dataclass import from_dict
    from grr_coca_study.ledger import Ledger
    from grr_coca_study.plan import Arm, Endpoints, Plan
    from grr_coca_study.report.numbers import study_results
    from grr_coca_study.rows import LedgerRow

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
    change = known["adamw"]["test coca"]
    assert 100 * np.expm1(change.ends()) == pytest.approx([result.effect.change, result.effect.low, result.effect.high])
    assert 100 * np.expm1(change.over_both()) == pytest.approx(result.over_both)


def test_figures_are_drawn_from_the_newest_ledgers(check):
    text = (ROOT / RESULTS).read_text(encoding="utf-8")
    import draw_results

    for name, studies in draw_results.FIGURES.items():
        assert f"({name})" in text
        mark = f"<!-- drawn from the ledger {draw_results.digest(studies)} -->"
        assert mark in (ROOT / "docs" / name).read_text(encoding="utf-8"), "run `make study-docs`"


@pytest.mark.ci
def test_figures_match_a_new_drawing(check, tmp_path):
    """Byte for byte, where matplotlib is the version that drew them."""
    import draw_results
    import matplotlib

    drawn = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in draw_results.FIGURES]
    if any(f"Matplotlib v{matplotlib.__version__}," not in svg for svg in drawn):
        pytest.skip("another version of matplotlib drew them")
    draw_results.main(tmp_path)
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in draw_results.FIGURES] == drawn


def test_paper_has_metadata_abstract_and_claims(monkeypatch):
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
    abstract = text.partition("Abstract.")[2].partition("CoCa loss, change in")[0]
    assert "4 to 8 % lower than Baseline CoCa's" in abstract
    assert "not a reproduction" in abstract
    for heading in ("Findings", "Method", "Limits", "Study design", "The settings in numbers", "References"):
        assert f"\n{heading}\n" in text or f"{heading}\n" in text, heading
    assert "2602.08071" in text.partition("References")[2]


@pytest.mark.ci
def test_paper_has_four_to_six_pages():
    """In a process of its own: WeasyPrint lets Pillow accept truncated images everywhere."""
    code = "import weasyprint; from make_paper import DOCS, page; html = weasyprint.HTML(string=page(), base_url=DOCS)"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}; print(len(html.render().pages))"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "docs")},
        check=False,
    )
    if "No module named 'weasyprint'" in result.stderr or "cannot load library" in result.stderr:  # Pango
        pytest.skip("make paper installs it")
    assert result.returncode == 0, result.stderr
    assert 4 <= int(result.stdout) <= 6
