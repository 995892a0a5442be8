"""The report of `adapt`: which model it recommends, and what it shows."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support import real_pairs, write_shard

from grr_coca.adapt.report import as_json, report_page, report_text
from grr_coca.cli.adapt import adapt_with_report
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.intervals import Interval
from grr_coca.infer.adapted.adaptation import Confidence

OUT = Path("mine")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """`icons`, adapted to some of its own training pairs, which it captions and finds better without adapting."""
    folder = tmp_path_factory.mktemp("report")
    shard = str(write_shard(folder / "pairs.tar", real_pairs(60)))
    return adapt_with_report(open_source(shard), shard, "icons", folder / "mine", None, is_tuned=False)


def with_gains(adapted, *, recall, cider):
    """Measurements in which adapting improves (1), keeps (0) or worsens (-1) search and captions."""
    figures = {}
    for kind, methods in adapted.measured.figures.items():
        ranks = methods["as shipped"].ranks
        moved = {name: own + (20 if recall else 0) for name, own in ranks.items()}
        better, worse = replace(methods["adapted"], ranks=ranks), replace(methods["adapted"], ranks=moved)
        own, base = (better, worse) if recall >= 0 else (worse, better)
        figures[kind] = {**methods, "adapted": own, "as shipped": base}
    return replace(
        adapted,
        measured=replace(adapted.measured, figures=figures),
        captions=replace(adapted.captions, cider_gain=Interval(cider, cider - 0.5, cider + 0.5)),
    )


def test_recommends_a_base_that_was_trained_on_the_pairs(adapted):
    for report in (report_text(adapted, OUT), report_page(adapted, OUT)):
        assert "Keep the base model, icons: it is better than the adapted model." in report
        assert "To search: grr-coca index IMAGES --out INDEX -c icons, then" in report
        assert "would help" not in report
        assert "would gain little" not in report
    found = json.loads(as_json(adapted))
    assert found["keep_base_model"] is True
    gain, captions = found["gains_over_base"]["CIDEr"], found["captions"]
    assert gain["value"] == pytest.approx(captions["adapted"]["CIDEr"] - captions["decoder alone"]["CIDEr"])
    assert gain["low"] < gain["value"] < gain["high"] < 0
    recalls = [found["retrieval"][f"new/{name}"]["text_to_image/R@1"] for name in ("adapted", "as shipped")]
    assert found["gains_over_base"]["text-to-image R@1"]["value"] == pytest.approx(recalls[0] - recalls[1])


@pytest.mark.parametrize(
    ("recall", "cider", "is_kept", "first", "searcher"),
    [
        (1, 1, False, "", "mine"),
        (0, 0, False, "", "mine"),
        (1, 0, False, "", "mine"),
        (-1, -1, True, "Keep the base model, icons", "icons"),
        (0, -1, True, "Keep the base model, icons", "icons"),
        (-1, 0, True, "Keep the base model, icons", "icons"),
        (1, -1, False, "Search with -c mine, and write captions with -c icons.", "mine"),
        (-1, 1, False, "Search with -c icons, and write captions with -c mine.", "icons"),
    ],
)
def test_recommends_the_better_model(adapted, recall, cider, is_kept, first, searcher):
    changed = with_gains(adapted, recall=recall, cider=cider)
    text = report_text(changed, OUT)
    assert json.loads(as_json(changed))["keep_base_model"] is is_kept
    assert f"--out INDEX -c {searcher}, then" in text
    assert first in text
    assert ("On held-out images, adapting changed text-to-image R@1 by " in text) is bool(first)
    assert ("Fine-tuning, which takes minutes," in text) is not is_kept


def test_unmeasured_search_leaves_captions_to_decide(adapted):
    few = replace(adapted, measured=replace(adapted.measured, figures={}))
    assert list(json.loads(as_json(few))["gains_over_base"]) == ["CIDEr"]
    assert "adapting changed CIDEr by -" in report_text(few, OUT)


def test_page_mentions_the_confidence_only_if_it_is_shown(adapted):
    for confidence, shown in ((None, None), (Confidence(weights=(0.0, 0.0, 0.0), offset=0.0), 0.5)):
        captions = adapted.captions
        captions = replace(
            captions,
            captioning=replace(captions.captioning, confidence=confidence),
            samples=[(image, text, shown) for image, text, _ in captions.samples],
        )
        page = report_page(replace(adapted, captions=captions), OUT)
        assert ("the caption of this model, its confidence, and in bold" in page) is ("(50%)<br>" in page)
        assert ("the caption of this model, and in bold" in page) is ("(50%)<br>" not in page)


def test_columns_of_the_table_align(adapted):
    text = report_text(adapted, OUT)
    table = text.split("images\n", 1)[1].split("\n\n")[0].splitlines()
    starts = [found.start() for found in re.finditer(r"text to image R@1|image to text R@1|R@10", table[0])]
    assert len(starts) == 4
    assert "100.0% [100%, 100%]" in text
    for row in table[1:]:
        assert all(row[start - 1] == " " and row[start].isdigit() for start in starts), row


def test_percentages_are_written_in_one_way(adapted):
    assert not re.search(r"\d %", report_text(with_gains(adapted, recall=1, cider=1), OUT))
