"""The report as files: from the ledger alone, whole, and readable without anything else."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image
from synthetic_study import arm, plan, rows_of, write_study

from grr_coca.cli import main
from grr_coca_study.report.figures import Panel, forest_plot
from grr_coca_study.report.page import format_change, format_p, write_study_report
from grr_coca_study.rows import CaptionedExample
from grr_coca_study.statistics import effect_of

ARMS = ("baseline_coca", "grr_coca", "baseline_rope_2d", "baseline_rms_geglu")
FILES = ("figures", "report.html", "report.md", "results.json")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A finished study of four arms with its report."""
    folder = tmp_path_factory.mktemp("study")
    rates = (0.003, 0.006)
    trials = [
        r
        for lr in rates
        for r in rows_of(ARMS, [100], recipe_digest=f"at {lr}", settings={"optimizer.lr": lr})
        if r.stage == "pictograms"
    ]
    arms = [arm(name, grid={"optimizer.lr": list(rates)}) for name in ARMS]
    content = plan(arms, tuning={"seeds": [100]})
    write_study(folder, content, [*trials, *rows_of(ARMS, range(8))])
    (folder / "showcase" / "pictograms").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(folder / "showcase" / "pictograms" / "snowman.png.webp")
    before = sorted(path.name for path in folder.iterdir())
    output = write_study_report(folder, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*before, *FILES])
    return folder, output


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes seconds, and other tests look at what is drawn."""
    for name in ("forest_plot", "learning_curves"):
        monkeypatch.setattr(f"grr_coca_study.report.page.{name}", lambda *_: "")


def test_numbers_have_a_sign():
    assert [format_change(x) for x in (-2.44, 0.31, -0.04)] == ["−2.4", "+0.3", "0.0"]
    assert [format_p(p) for p in (0.0004, 2 / 256, None)] == ["< 0.001", "0.008", "–"]


@pytest.mark.ci
def test_page_starts_with_the_answer_and_is_self_contained(reported):
    folder, output = reported
    text = (folder / "report.html").read_text()
    begins = re.sub(r"<[^>]+>", " ", text.partition("<body>")[2][:500]).split()
    headline = "Is GRR-CoCa better than Baseline CoCa? Better in 6 of 6 primary endpoints."
    assert " ".join(begins).startswith(headline)
    assert " ".join(output.splitlines()[:2]) == headline
    addresses = re.findall(r"(?:src|href)=[\"']?([^\"'\s>]+)", text)
    assert addresses
    assert [address for address in addresses if not address.startswith(("#", "data:"))] == []


@pytest.mark.ci
def test_page_has_every_figure_and_table(reported):
    page, text = ((reported[0] / f"report.{kind}").read_text() for kind in ("html", "md"))
    # Forests of the endpoints and of both phases, curves of four stages.
    shown = re.findall(r"!\[[^\]]*\]\((figures/[^)]+)\)", text)
    assert len(shown) == page.count("<svg") == page.count('class="figure"') == 1 + 2 + 4
    assert all((reported[0] / path).read_text().startswith("<svg") for path in shown)
    titles = re.findall(r"<h2>(\w+)", page)
    assert titles == ["Endpoints", "Every", "Every", "Learning", "Cost", "Settings", "Captions", "How"]
    assert "not finished" not in page.lower()
    assert re.search(r"lr 0\.003</td>\n<td[^>]*>3\.\d+", page), "every trial is told with its score"
    assert "![snowman.png](showcase/pictograms/snowman.png.webp)" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| CoCa loss after pretraining"))
    assert "| better |" in re.sub(" +", " ", line)


def test_figure_mentions_intervals_only_if_it_has_some():
    one, several = (effect_of(range(len(logs)), np.array(logs)) for logs in ([-0.1], [-0.1, -0.12]))
    for effect, has_intervals in ((one, False), (several, True)):
        svg = forest_plot(["CoCa loss"], [Panel("all", [effect])], "change over Baseline CoCa")
        assert ("95 % interval" in svg) is has_intervals
        assert "change over Baseline CoCa in %" in svg


@pytest.mark.usefixtures("without_figures")
def test_columns_without_a_number_are_excluded(tmp_path):
    folder = write_study(tmp_path, plan(ARMS[:2], 1), rows_of(ARMS[:2], [0], training_flops=2_500_000_000_000))
    output = write_study_report(folder, folder)
    (heads,) = (line for line in output.splitlines() if line.startswith("| endpoint"))
    assert [head.strip() for head in heads.split("|")[4:-1]] == ["change, %", "over images", "seeds", "verdict"]
    text = (folder / "report.md").read_text()
    assert len(re.findall(r"\| +10\.00 \|", text)) == 2, "TFLOP of four stages, of both arms"


def test_captions_of_both_models_are_next_to_the_image(reported):
    text = (reported[0] / "report.html").read_text()
    rows = re.findall(r"<tr>(.*?)</tr>", text.partition("<h2>Captions: pictograms")[2], re.DOTALL)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in rows[1:]]
    assert cells[1] == ["red heart.png", "red heart", "red heart", "heart suit"]
    assert cells[0][0].startswith('<img src="data:image/webp;base64,')
    assert cells[0][1:] == ["snowman", "snow", "snowman"]


@pytest.mark.ci
def test_equal_ledgers_give_equal_files(reported, tmp_path):
    folder, _ = reported
    write_study_report(folder, tmp_path)
    for path in (folder / "report.html", folder / "results.json", *(folder / "figures").iterdir()):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


def test_results_are_machine_readable(reported):
    results = json.loads((reported[0] / "results.json").read_text())
    main_arm = results["arms"][0]
    assert (main_arm["arm"], results["baseline"], results["num_seeds"]) == ("grr_coca", "baseline_coca", 8)
    (found,) = (r for r in main_arm["endpoints"] if r["endpoint"] == "pretraining/coca_loss")
    assert found["effect"]["low"] < found["effect"]["change"] < found["effect"]["high"] < 0


@pytest.mark.usefixtures("without_figures")
def test_names_and_captions_are_escaped_text(tmp_path):
    caption = "<b>a</b> | *b* [c](javascript:d) &amp; `e` ![f](g)\n# h"
    shown = (CaptionedExample("a|b*.png", (caption,), caption), CaptionedExample("caf\udce9", ("a cup",), "a cup"))
    folder = write_study(tmp_path, plan(ARMS[:2], 1), rows_of(ARMS[:2], [0], captions=shown))
    write_study_report(folder, folder)
    page = (folder / "report.html").read_text()
    expected = "<td>&lt;b&gt;a&lt;/b&gt; | *b* [c](javascript:d) &amp;amp; `e` ![f](g) # h</td>"
    assert page.count(expected) == 3 * 4, "as a reference and of two arms, of four stages"
    assert "<td>a|b*.png</td>" in page
    assert r"caf\udce9" in page, "a name that is not UTF-8"


@pytest.mark.usefixtures("without_figures")
def test_command_reports_on_half_a_study(tmp_path, capsys):
    pair = ARMS[:2]
    folder = write_study(tmp_path / "half", plan(pair), rows_of(pair, range(2)))
    (folder / "rows" / "half.json").write_text('{"kind": "run", "arm"')
    assert main(["study", "report", str(folder), "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "So far, with 2 of 8 seeds complete" in output
    assert "grr_coca, health, seeds: 2, 3, 4, 5, 6, 7" in output
    assert "half.json: is not a row and does not count" in output
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<strong>Not finished:</strong> 16 of 64 stages are done" in text
    assert "half.json: is not a row and does not count" in text


@pytest.mark.usefixtures("without_figures")
def test_report_can_compare_with_another_arm(tmp_path, capsys):
    pair = ARMS[:2]
    folder = write_study(tmp_path, plan(pair), rows_of(pair, range(8)))
    assert main(["study", "report", str(folder), "--over", "grr_coca"]) == 0
    output = capsys.readouterr().out
    assert "Is Baseline CoCa better than GRR-CoCa?\nWorse in 6 of 6 primary endpoints." in output
    assert "the arms are compared with grr_coca; the plan names baseline_coca as the baseline" in output
    assert f"report: {folder / 'over-grr_coca' / 'report.html'}" in output
    before = sorted(folder.rglob("*"))
    assert main(["study", "report", str(folder), "--over", "grr_cocoa"]) == 2
    assert "no arm 'grr_cocoa'; did you mean 'grr_coca'?" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.ci
def test_study_without_a_pair_still_has_a_page(tmp_path):
    folder = write_study(tmp_path, plan(ARMS[:2]), rows_of(ARMS[:1], [0]))
    assert "nothing to compare in 6 of 6" in write_study_report(folder, folder)
    assert (folder / "report.html").read_text().endswith("</html>\n")


@pytest.mark.usefixtures("without_figures")
def test_report_of_a_demo_has_images_and_needs_no_scipy(tmp_path, monkeypatch, capsys):
    for name in ("scipy", "scipy.stats", "scipy.optimize"):
        monkeypatch.setitem(sys.modules, name, None)
    demo = plan(ARMS[:2], 1, queries=["snowman"], num_hits=1)
    folder = write_study(tmp_path, demo, rows_of(ARMS[:2], [0]))
    (folder / "exhibits").mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "exhibits" / "7.webp")
    shown = {
        "heat_maps": [{"truth": "a *cat*", "words": ["a"], "picture": "7.webp"}],
        "searches": [{"query": "snow|man", "hits": [{"caption": "snow", "picture": "7.webp"}]}],
    }
    (folder / "exhibits" / "exhibits.json").write_text(json.dumps(dict.fromkeys(ARMS[1::-1], shown)))
    assert "Undecided in 6 of 6 primary endpoints" in write_study_report(folder, folder)
    assert main(["study", "status", str(folder)]) == 0
    assert "finished of 1 seed" in capsys.readouterr().out
    text = (folder / "report.html").read_text()
    assert "One seed is not evidence" in text
    assert "<h3>a *cat*</h3>" in text
    assert text.count('alt="where grr_coca looks"') == text.count('alt="where baseline_coca looks"') == 1
    assert "<th>snow|man</th>" in text
    assert text.count('alt="snow"') == 2


def test_every_split_has_a_line_and_the_domains_their_mean(reported):
    results = json.loads((reported[0] / "results.json").read_text())
    names = [f"{stage}/test" for stage in ("pictograms", "health", "clipart", "glyphs")]
    assert [row["split"] for row in results["splits"]] == [*names, "average of 3 domains"]
    first = results["splits"][0]
    (found,) = (r for r in results["arms"][0]["endpoints"] if r["endpoint"] == "pretraining/coca_loss")
    assert (first["model"]["coca_loss"], first["baseline"]["coca_loss"]) == pytest.approx(
        (found["arm_value"], found["baseline_value"])
    )
    assert "\naverage of 3 domains │ " in (reported[0] / "report.md").read_text()


def test_rejects_a_folder_without_a_study(tmp_path, capsys):
    assert main(["study", "report", str(tmp_path / "nowhere")]) == 2
    assert main(["study", "report", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert main(["study", "report", str(tmp_path)]) == 2
    assert main(["study", "status", str(tmp_path / "nowhere")]) == 2
    output = capsys.readouterr().err
    assert output.count("nowhere: no such folder; pass the folder that `grr-coca study run` writes to") == 3
    assert f"{tmp_path}: not a study (plan.yaml is missing)" in output
    assert list(tmp_path.iterdir()) == []
    folder = write_study(tmp_path / "study", plan(ARMS[:2]), [])
    (folder / "digests.json").unlink()
    assert main(["study", "report", str(folder)]) == 2
    assert "digests.json: file not found; run `grr-coca study run` to write it again" in capsys.readouterr().err


def test_unwritable_report_names_its_path(tmp_path, capsys):
    folder = write_study(tmp_path / "study", plan(ARMS[:2]), rows_of(ARMS[:2], [0]))
    (tmp_path / "file").touch()
    assert main(["study", "report", str(folder), "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'file'}: cannot be written to (File exists)")
