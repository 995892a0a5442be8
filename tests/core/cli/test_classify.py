"""`grr-coca classify`."""

import json
import os
import re
from pathlib import Path

import pytest
from support import snapshot

from grr_coca.infer.load import load

LABELS = ["cat", "red heart", "dog", "flag"]


@pytest.fixture
def labels_file(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(LABELS) + "\n\n")
    return path


def test_labels_are_sorted_by_probability(grr_coca, run, image_files, labels_file):
    result = grr_coca("classify", *image_files, "-c", run.folder, "--labels", labels_file, "--top", 2, "--json")
    assert result.code == 0, result.err
    records = [json.loads(line) for line in result.out.splitlines()]
    expected = load(run.folder).classify(image_files, LABELS)
    assert [record["image"] for record in records] == [str(path) for path in image_files]
    for record, choices in zip(records, expected, strict=True):
        assert [label["label"] for label in record["labels"]] == [choice.label for choice in choices[:2]]
        shares = [label["probability"] for label in record["labels"]]
        assert shares == pytest.approx([choice.probability for choice in choices[:2]], abs=1e-5)


def test_text_output_matches_json(grr_coca, run, image_files):
    options = ["classify", *image_files, "-c", run.folder, "--labels", ",".join(LABELS), "--batch-size", 2]
    lines = grr_coca(*options).out.splitlines()
    for line, record in zip(lines, map(json.loads, grr_coca(*options, "--json").out.splitlines()), strict=True):
        path, _, shown = line.partition("\t")
        assert path == record["image"]
        assert shown.split("   ") == [f"{c['probability']:.1%} {c['label']}" for c in record["labels"]]
        assert len(record["labels"]) == 4


def test_likely_labels_are_added_as_keywords_to_xmp_files(grr_coca, run, image_files):
    options = ["classify", *image_files, "-c", run.folder, "--labels", ",".join(LABELS), "--top", 4]
    plain = [json.loads(line) for line in grr_coca(*options, "--json").out.splitlines()]
    limit = sorted(choice["probability"] for record in plain for choice in record["labels"])[-2]
    image_files[2].with_name("2.webp.xmp").write_text("no XML")
    before = snapshot(image_files[0].parent)
    result = grr_coca(*options, "--json", "--sidecar", "xmp", "--min-probability", limit * (1 - 1e-6))
    assert result.code == 0, result.err
    assert [json.loads(line) for line in result.out.splitlines()] == plain
    assert "1 XMP file cannot be written:\n" in result.err
    after = snapshot(image_files[0].parent)
    assert {name: after[name] for name in before} == before
    for record, path in list(zip(plain, image_files, strict=True))[:2]:
        keywords = [c["label"] for c in record["labels"] if c["probability"] >= limit * (1 - 1e-6)]
        written = after.get(f"{path.name}.xmp", b"").decode()
        assert re.findall("<rdf:li>(.*?)</rdf:li>", written) == keywords
        assert "dc:description" not in written


def test_templates_change_the_answer(grr_coca, run, image_files):
    options = ["classify", image_files[0], "-c", run.folder, "--labels", "cat,dog", "--json"]
    templates = ("a drawing of a {}", "many {}")
    found = json.loads(grr_coca(*options, "--templates", *templates).out)["labels"]
    expected = load(run.folder).classify(image_files[0], ["cat", "dog"], templates=templates)
    assert {c["label"]: c["probability"] for c in found} == pytest.approx(dict(expected), abs=1e-5)
    assert found != json.loads(grr_coca(*options).out)["labels"]


def test_labels_may_exceed_the_length_of_a_file_name(grr_coca, run, image_files):
    labels = [f"label {number}" for number in range(60)]
    result = grr_coca("classify", image_files[0], "-c", run.folder, "--labels", ",".join(labels), "--json", "--top", 60)
    assert result.code == 0, result.err
    assert {choice["label"] for choice in json.loads(result.out)["labels"]} == set(labels)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no paths of pipes")
def test_labels_may_come_from_a_pipe(grr_coca, run, image_files):
    read, write = os.pipe()
    os.write(write, b"cat\ndog\n")
    os.close(write)
    result = grr_coca("classify", image_files[0], "-c", run.folder, "--labels", f"/dev/fd/{read}", "--json")
    os.close(read)
    assert {choice["label"] for choice in json.loads(result.out)["labels"]} == {"cat", "dog"}, result.err


def test_file_of_labels_may_have_a_comma_in_its_name(grr_coca, run, image_files, tmp_path):
    (tmp_path / "a,b.txt").write_text("cat\ndog\n")
    result = grr_coca("classify", image_files[0], "-c", run.folder, "--labels", tmp_path / "a,b.txt", "--json")
    assert {choice["label"] for choice in json.loads(result.out)["labels"]} == {"cat", "dog"}


def test_bad_images_are_listed(grr_coca, run, image_files, tmp_path):
    result = grr_coca("classify", image_files[0], tmp_path / "cat.png", "-c", run.folder, "--labels", "cat,dog")
    assert result.code == 0
    assert "1 of 2 images failed" in result.err
    assert grr_coca("classify", tmp_path / "cat.png", "-c", run.folder, "--labels", "cat,dog").code == 1
