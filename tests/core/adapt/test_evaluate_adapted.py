"""`evaluate`, `compare` and `classify` take an adapted model."""

import json

import numpy as np
import pytest

from grr_coca import load


def test_retrieval_equals_that_of_its_vectors(grr_coca, place, model, unseen):
    images, captions = unseen
    result = grr_coca("evaluate", place / "mine", "--data", place / "unseen.tar", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)[str(place / "unseen.tar")]
    similar = model.similarity(images, captions).T
    ranks = (similar >= np.diag(similar)[:, None] - 1e-6).sum(axis=1)
    assert report["task"] == "retrieval"
    for k in (1, 5, 10):
        assert report["metrics"][f"text_to_image/R@{k}"]["value"] == pytest.approx((ranks <= k).mean(), abs=1 / 50)


@pytest.mark.ci
def test_captions_equal_the_choices_of_the_model(grr_coca, place, model, unseen, tmp_path):
    out = tmp_path / "captions.jsonl"
    task = ["--task", "captioning", "--out", out]
    result = grr_coca("evaluate", place / "mine", "--data", place / "unseen.tar", *task)
    assert result.code == 0, result.err
    assert "CIDEr-D" in result.out
    chosen = [json.loads(line)["caption"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert chosen == model.caption(unseen[0], batch_size=64)


def test_classes_are_measured_and_found(grr_coca, place, model, unseen, tmp_path):
    images, captions = unseen
    kinds = [caption.split()[0] for caption in captions]
    rows = "\n".join(f"{path},{kind}" for path, kind in zip(images, kinds, strict=True))
    (tmp_path / "labels.csv").write_text(f"image,label\n{rows}\n", encoding="utf-8")
    result = grr_coca("evaluate", place / "mine", "--task", "zeroshot", "--data", tmp_path / "labels.csv", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)[str(tmp_path / "labels.csv")]
    labels = sorted(set(kinds))
    best = [found[0].label for found in model.classify(images, labels)]
    agreement = np.mean([one == other for one, other in zip(best, kinds, strict=True)])
    assert report["metrics"]["top-1"]["value"] == pytest.approx(agreement, abs=1 / 50)
    assert agreement > 2 / len(labels)
    result = grr_coca("classify", images[0], "-c", place / "mine", "--labels", ",".join(labels), "--json")
    assert json.loads(result.out)["labels"][0]["label"] == best[0]


@pytest.mark.ci
def test_comparison_with_the_base_has_paired_differences(grr_coca, place, unseen):
    arguments = ["compare", place / "mine", "icons", "--data", place / "unseen.tar"]
    found = json.loads(grr_coca(*arguments, "--json").out)[str(place / "unseen.tar")]
    images, captions = unseen
    mine, base = found["metrics"]
    for metrics, name in ((mine, place / "mine"), (base, "icons")):
        similar = load(name, engine="onnx").similarity(images, captions).T
        ranks = (similar >= np.diag(similar)[:, None] - 1e-6).sum(axis=1)
        assert metrics["text_to_image/R@10"]["value"] == pytest.approx((ranks <= 10).mean(), abs=1 / 50)
    gain = found["differences"]["text_to_image/R@10"]
    assert gain["value"] == pytest.approx(mine["text_to_image/R@10"]["value"] - base["text_to_image/R@10"]["value"])
    assert gain["low"] > 0
    result = grr_coca(*arguments)
    assert result.code == 0, result.err
    assert f"{gain['value']:+.1%} [{gain['low']:+.1%}, {gain['high']:+.1%}]" in result.out
