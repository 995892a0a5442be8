"""`grr-coca caption`."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copyfile

import pytest
from PIL import Image
from processes import running
from support import real_pairs, snapshot

from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.infer import ImageTextModel
from grr_coca.infer.load import load
from grr_coca.model.checkpoint_files import DEFAULT


@pytest.fixture
def captions(run, image_files):
    """What the model says of the image files, by path."""
    return dict(zip(map(str, image_files), load(run.folder).caption(image_files), strict=True))


def lines_of(text):
    return dict(line.split("\t") for line in text.splitlines())


# --- Output


def test_each_image_gets_a_line_with_its_path_and_its_caption(grr_coca, run, image_files, captions):
    outcome = grr_coca("caption", "--checkpoint", run.folder, *image_files)
    assert outcome.code == 0, outcome.err
    assert lines_of(outcome.out) == captions
    assert grr_coca("caption", "-c", run.checkpoint, *image_files).out == outcome.out


def test_tags_follow_the_caption(grr_coca, image_files):
    outcome = grr_coca("caption", "-c", "icons", image_files[0], "--tags", 3)
    image, caption, tags = outcome.out.rstrip("\n").split("\t")
    assert (image, len(tags.split(", "))) == (str(image_files[0]), 3)
    record = json.loads(grr_coca("caption", "-c", "icons", image_files[0], "--tags", 3, "--json").out)
    assert record["caption"] == caption
    assert [found["tag"] for found in record["tags"]] == tags.split(", ")
    assert all(0 < found["probability"] < 1 for found in record["tags"])


def test_json_lines_hold_image_caption_and_log_probability(grr_coca, run, image_files, captions):
    outcome = grr_coca("caption", "-c", run.folder, *image_files, "--json")
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert {record["image"]: record["caption"] for record in records} == captions
    described = load(run.folder).describe(image_files)
    expected = [sum(description.captions[0].log_probs) for description in described]
    assert [record["log_prob"] for record in records] == pytest.approx(expected, abs=1e-3)


def test_rows_are_the_same_in_json_and_csv(grr_coca, run, image_files, captions, tmp_path):
    for name in ("out.jsonl", "new/out.csv"):
        outcome = grr_coca("caption", "-c", run.folder, *image_files, "--out", tmp_path / name)
        assert (outcome.code, outcome.out) == (0, "")
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "new" / "out.csv").read_text())))
    assert [{**record, "log_prob": str(record["log_prob"])} for record in records] == rows
    assert {row["image"]: row["caption"] for row in rows} == captions


def test_each_caption_has_a_line_and_starts_with_the_prompt(grr_coca, run, image_files):
    options = ["--temperature", 1, "--num-captions", 3, "--max-length", 4, "--prompt", "red"]
    rows = [row.split("\t") for row in grr_coca("caption", "-c", run.folder, *image_files, *options).out.splitlines()]
    assert [image for image, _ in rows] == [str(path) for path in image_files for _ in range(3)]
    assert all(caption.startswith("red") for _, caption in rows)


def test_sidecars_are_next_to_images_and_not_overwritten(grr_coca, run, image_files, captions):
    image_files[1].with_suffix(".txt").write_text("written by hand")
    (image_files[0].parent / "other.png").write_bytes(image_files[0].read_bytes())
    (image_files[0].parent / "other.txt").symlink_to("nowhere")
    outcome = grr_coca("caption", "-c", run.folder, image_files[0].parent, "--sidecar", "txt")
    (image_files[0].parent / "other.png").unlink()
    (image_files[0].parent / "other.txt").unlink()
    assert (outcome.code, outcome.out) == (0, "")
    assert "2 of 4 images already have captions" in outcome.err
    written = [path.with_suffix(".txt").read_text() for path in image_files]
    assert written[1] == "written by hand"
    assert [written[0], written[2]] == [f"{captions[str(image_files[i])]}\n" for i in (0, 2)]
    assert len(list(image_files[0].parent.iterdir())) == 6


def test_existing_sidecars_are_replaced_on_request(grr_coca, run, image_files, captions):
    for path in image_files[:2]:
        path.with_suffix(".txt").write_text("written by hand")
    image_files[2].with_suffix(".txt").symlink_to(image_files[2].name)
    before = snapshot(image_files[0].parent)
    outcome = grr_coca("caption", "-c", run.folder, image_files[0].parent, "--sidecar", "txt", "--overwrite")
    assert "1 of 3 images already have captions" in outcome.err, "a link may lead to an image"
    written = {f"{i}.txt": f"{captions[str(image_files[i])]}\n".encode() for i in (0, 1)}
    assert snapshot(image_files[0].parent) == before | written


def test_captions_keep_other_content_of_xmp_files(grr_coca, run, image_files):
    folder, notes = image_files[0].parent, {}
    begun = ("--prompt", "boat")  # the small model has nothing to say of itself, and no file is made for that
    captions = load(run.folder).caption(image_files, prompt="boat")
    spaces = "xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#' xmlns:x='adobe:ns:meta/'"
    whole = f"<x:xmpmeta {spaces}><rdf:RDF><rdf:Description rdf:about=''>NOTE</rdf:Description></rdf:RDF></x:xmpmeta>"
    notes["0.xmp"] = whole.replace("NOTE", "<a xmlns='urn:a'>mine</a>")
    notes["1.webp.xmp"] = "no XML"
    for name, content in notes.items():
        (folder / name).write_text(content)
    before = snapshot(folder)
    outcome = grr_coca("caption", "-c", run.folder, folder, "--sidecar", "xmp", *begun)
    assert outcome.code == 0, outcome.err
    assert "already have captions" not in outcome.err
    assert "1 XMP file cannot be written:\n" in outcome.err
    assert f"{folder / '1.webp.xmp'}: not an XMP file" in outcome.err
    after = snapshot(folder)
    assert after.keys() - before.keys() == {"2.webp.xmp"}
    assert {name for name in before if after[name] != before[name]} == {"0.xmp"}
    assert "<a xmlns='urn:a'>mine</a>" in (folder / "0.xmp").read_text()
    for number, name in ((0, "0.xmp"), (2, "2.webp.xmp")):
        assert f'xml:lang="x-default">{captions[number]}</rdf:li>' in (folder / name).read_text()
    outcome = grr_coca("caption", "-c", run.folder, folder, "--sidecar", "xmp", *begun)
    assert (outcome.code, "2 of 3 images already have captions" in outcome.err) == (0, True)
    assert snapshot(folder) == after
    as_attribute = whole.replace("rdf:about=''", "xmlns:dc='http://purl.org/dc/elements/1.1/' dc:description='mine'")
    for content, options in (("no XML", []), (as_attribute, ["--overwrite"])):
        (folder / "1.webp.xmp").write_text(content)
        outcome = grr_coca("caption", "-c", run.folder, image_files[1], "--sidecar", "xmp", *begun, *options)
        assert (outcome.code, "already have captions" in outcome.err) == (1, False), "none of the images has one now"
        assert "1 XMP file cannot be written:\n" in outcome.err


@pytest.mark.parametrize("kind", ["txt", "xmp"])
def test_read_only_folder_does_not_stop_other_folders(grr_coca, run, image_files, tmp_path, monkeypatch, kind):
    open_folder, closed = image_files[0].parent, tmp_path / "closed"
    closed.mkdir()
    copyfile(image_files[0], closed / image_files[0].name)
    # Root may write everywhere.
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != closed or not mode & os.W_OK)
    for arguments, code in (([open_folder, closed], 0), ([closed], 1)):
        outcome = grr_coca("caption", "-c", run.folder, *arguments, "--sidecar", kind, "--prompt", "boat")
        assert outcome.code == code
        assert f"1 {'text' if kind == 'txt' else 'XMP'} file cannot be written:\n" in outcome.err
        assert ": the folder is read-only" in outcome.err
    assert [path.name for path in closed.iterdir()] == [image_files[0].name]
    assert len(list(open_folder.glob(f"*.{kind}"))) == 3


def test_sidecar_suffixes_ignore_case(grr_coca, run, image_files, captions):
    folder = image_files[0].parent
    for number in (0, 1):
        (folder / f"{number}.TXT").write_text("written by hand")
    outcome = grr_coca("caption", "-c", run.folder, folder, "--sidecar", "txt")
    assert "2 of 3 images already have captions" in outcome.err
    assert sorted(path.name for path in folder.glob("*.[tT]*")) == ["0.TXT", "1.TXT", "2.txt"]
    assert (folder / "0.TXT").read_text() == "written by hand"
    grr_coca("caption", "-c", run.folder, image_files[0], "--sidecar", "txt", "--overwrite")
    assert sorted(path.name for path in folder.glob("0.*")) == ["0.TXT", "0.webp"]
    assert (folder / "0.TXT").read_text() == f"{captions[str(image_files[0])]}\n"


def test_caption_is_never_written_into_an_image(refused, run, image_files, monkeypatch):
    """Also if the image has the name of a text file, or is meant by two names."""
    image_files[0].rename(image_files[0].with_suffix(".txt"))
    before = snapshot(image_files[0].parent)
    monkeypatch.chdir(image_files[0].parent)
    (image_files[0].parent / "0.png").symlink_to("1.webp")
    for images in (["0.txt"], ["0.png", image_files[0].with_suffix(".txt")]):
        message = refused("caption", "-c", run.folder, *images, "--sidecar", "txt", "--overwrite")
        assert "this image would be overwritten" in message or "would be written to" in message
    (image_files[0].parent / "0.png").unlink()
    assert snapshot(image_files[0].parent) == before


def test_without_a_checkpoint_the_bundled_model_is_used(grr_coca, image_files):
    given, default = (grr_coca("caption", image_files[0], *flags) for flags in (["-c", DEFAULT], []))
    assert default.code == 0
    assert default.out == given.out
    assert default.out.split("\t")[1].strip()


# --- Going on


@pytest.mark.parametrize(("name", "cuts"), [("out.jsonl", (1, 110)), ("out.csv", (0, 25, 60))])
def test_interrupted_job_resumes(grr_coca, run, image_files, tmp_path, name, cuts):
    whole, path = tmp_path / f"whole-{name}", tmp_path / name
    command = ["caption", "-c", run.folder, *image_files, "--temperature", 1, "--num-captions", 2, "--max-length", 4]
    assert grr_coca(*command, "--out", whole).code == 0
    content = whole.read_bytes()
    for cut in cuts:
        path.write_bytes(content[: len(content) - cut])
        assert grr_coca(*command, "--out", path).code == 0
        # Fewer rows at a time are multiplied by other kernels: the last bits of log-probabilities differ, and no word.
        (words, numbers), (expected, expected_numbers) = (_apart(text) for text in (path.read_text(), content.decode()))
        assert words == expected
        assert numbers == pytest.approx(expected_numbers, abs=2e-4)


def _apart(text: str) -> tuple[list[str], list[float]]:
    """What lies between decimal numbers, and those."""
    pieces = re.split(r"(-?\d+\.\d+)", text)
    return pieces[::2], [float(number) for number in pieces[1::2]]


def test_only_uncaptioned_images_are_captioned(grr_coca, run, image_files, tmp_path):
    out = tmp_path / "out.jsonl"
    grr_coca("caption", "-c", run.folder, *image_files[:2], "--out", out)
    before = out.read_text()
    for done in image_files[:2]:
        done.write_bytes(b"not an image, if it were decoded again")
    outcome = grr_coca("caption", "-c", run.folder, *image_files, "--out", out)
    assert outcome.code == 0
    assert "2 of 3 images already have captions" in outcome.err
    assert "failed" not in outcome.err
    assert out.read_text().startswith(before)
    assert len(out.read_text().splitlines()) == 3


def test_rows_are_on_the_disk_as_soon_as_their_batch_is_done(grr_coca, run, image_files, tmp_path, monkeypatch):
    out, seen = tmp_path / "out.jsonl", []
    describe = ImageTextModel.describe_many

    def watched(self, *args, **kwargs):
        seen.append(len(out.read_text().splitlines()) if out.exists() else 0)
        return describe(self, *args, **kwargs)

    monkeypatch.setattr(ImageTextModel, "describe_many", watched)
    assert grr_coca("caption", "-c", run.folder, *image_files, "--out", out, "--batch-size", 1).code == 0
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_more_captions_for_some_images_do_not_change_other_rows(grr_coca, run, image_files, tmp_path, name):
    out = tmp_path / name
    command = ["caption", "-c", run.folder, "--out", out, "--max-length", 4]
    grr_coca(*command, *image_files)
    before = out.read_text().splitlines()
    assert grr_coca(*command, image_files[0], "--num-captions", 2, "--num-beams", 2).code == 0
    after = out.read_text().splitlines()
    kept = [line for line in before if str(image_files[0]) not in line]
    assert after[: len(kept)] == kept
    assert [str(image_files[0]) in line for line in after[len(kept) :]] == [True, True]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_rows_stay_until_there_are_better_ones(grr_coca, run, image_files, tmp_path, monkeypatch, name):
    out = tmp_path / name
    command = ["caption", "-c", run.folder, "--out", out, "--max-length", 4, image_files[0]]
    grr_coca(*command)
    before = out.read_bytes()

    def stopped(*_args, **_options):
        raise UserError("stopped while the model was loaded")

    with monkeypatch.context() as patched:
        patched.setattr("grr_coca.load", stopped)
        assert grr_coca(*command, "--num-captions", 2, "--num-beams", 2).code == 2
    assert out.read_bytes() == before
    assert grr_coca(*command, "--num-captions", 2, "--num-beams", 2).code == 0
    assert len(out.read_text().splitlines()) == 2 + (name == "out.csv")


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_name_with_a_line_end_keeps_its_captions(grr_coca, run, image_files, tmp_path, name):
    odd = image_files[0].with_name("a\rb.png")
    odd.write_bytes(image_files[0].read_bytes())
    plain = image_files[0].with_name("b.png")
    plain.write_bytes(image_files[1].read_bytes())
    command = ["caption", "-c", run.folder, "--out", tmp_path / name, "--max-length", 4]
    assert grr_coca(*command, odd).code == 0
    once = (tmp_path / name).read_bytes()
    assert "1 of 1 images already have captions" in grr_coca(*command, odd).err
    assert (tmp_path / name).read_bytes() == once
    assert grr_coca(*command, odd, plain).err == "1 of 2 images already have captions\n"
    if name == "out.csv":
        with (tmp_path / name).open(newline="") as file:
            assert [row["image"] for row in csv.DictReader(file)] == [str(odd), str(plain)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("out.jsonl", "some notes\n"),
        ("out.jsonl", '{"path": "a"}\n'),
        ("out.jsonl", "[1]\n"),
        pytest.param("out.jsonl", "[" * 100_000 + "\n", id="deeply nested"),
        pytest.param(
            "out.jsonl", f'{{"image": "a", "caption": "b", "log_prob": 1{"0" * 400}}}\n', id="a number too large"
        ),
        ("out.csv", "a,b\n1,2\n"),
        ("out.csv", "name,text\n"),
        ("out.csv", "caption,image,log_prob\n"),
        pytest.param("out.csv", "x" * 200_000 + "\n", id="a long line"),
        pytest.param("out.csv", 'image,caption,log_prob\n"' + "x" * 200_000 + "\n", id="an open quote"),
    ],
)
def test_file_with_other_content_is_unchanged(refused, run, image_files, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert str(tmp_path / name) in refused("caption", "-c", run.folder, *image_files, "--out", tmp_path / name)
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize("is_there", [True, False], ids=["goes on", "begins"])
def test_simultaneous_jobs_do_not_write_into_one_file(grr_coca, run, image_files, tmp_path, monkeypatch, is_there):
    out = tmp_path / "out.csv"
    command = ["caption", "-c", run.folder, "--out", out, "--max-length", 4]
    if is_there:
        grr_coca(*command, image_files[0])
    describe, others = ImageTextModel.describe_many, []

    def meanwhile(self, *args, **kwargs):
        if not others:
            others.append(None)
            others.append(grr_coca(*command, *image_files))
        return describe(self, *args, **kwargs)

    monkeypatch.setattr(ImageTextModel, "describe_many", meanwhile)
    outcome = [grr_coca(*command, *image_files), others[1]]
    assert sorted(one.code for one in outcome) == [0, 2]
    assert f"{out}: another process is writing to this file; wait" in outcome[0].err + outcome[1].err
    with out.open(newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == list(map(str, image_files))


# --- Images that cannot be read


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", real_pairs(1)[0].image[:200]], ids=["empty", "HTML", "half"]
)
def test_bad_image_is_listed_at_the_end_and_the_rest_continues(grr_coca, run, image_files, captions, content):
    image_files[1].write_bytes(content)
    outcome = grr_coca("caption", "-c", run.folder, *image_files)
    assert outcome.code == 0
    assert lines_of(outcome.out) == {path: text for path, text in captions.items() if path != str(image_files[1])}
    lines = outcome.err.splitlines()
    assert lines[0] == "1 of 3 images failed:"
    assert lines[1].startswith(f"  {image_files[1]}: ")
    assert len(lines) == 2


def test_exit_code_is_1_if_all_fail(grr_coca, run, tmp_path):
    outcome = grr_coca("caption", "-c", run.folder, tmp_path / "cat.png", tmp_path / "dog.png")
    assert (outcome.code, outcome.out) == (1, "")
    assert "2 of 2 images failed" in outcome.err
    assert f"{tmp_path / 'cat.png'}: no such file" in outcome.err


def test_name_that_is_not_utf8_is_output_unchanged(run, image_files, tmp_path, capfdbinary):
    path = Path(os.fsdecode(os.fsencode(image_files[0].parent) + b"/caf\xe9.webp"))
    image_files[0].rename(path)

    def caption(*options):
        assert main(["caption", "-c", str(run.folder), str(path), *options]) == 0
        return capfdbinary.readouterr()

    assert caption().out.startswith(os.fsencode(path) + b"\t")
    assert json.loads(caption("--json").out)["image"] == str(path)
    for out in (tmp_path / "out.jsonl", tmp_path / "out.csv"):
        caption("--out", str(out))
        assert b"1 of 1 images already have captions" in caption("--out", str(out)).err
    assert os.fsencode(path) + b"," in (tmp_path / "out.csv").read_bytes()


def test_control_characters_in_names_are_escaped(grr_coca, run, image_files, tmp_path):
    odd = tmp_path / "odd" / "a\n\x1b[2Jb.webp"
    odd.parent.mkdir()
    odd.write_bytes(image_files[0].read_bytes())
    (odd.parent / "c\td.png").write_bytes(b"no picture")
    outcome = grr_coca("caption", odd.parent, "-c", run.folder)
    assert outcome.out.startswith(rf"{odd.parent}/a\n\x1b[2Jb.webp" + "\t")
    assert len(outcome.out.splitlines()) == 1
    assert r"c\td.png: not an image" in outcome.err
    assert json.loads(grr_coca("caption", odd.parent, "-c", run.folder, "--json").out)["image"] == str(odd)


def test_errors_and_warnings_escape_control_characters(grr_coca, image_files, tmp_path):
    outcome = grr_coca("caption", "-c", tmp_path / "\x1b[2Jhere", image_files[0])
    assert outcome.code == 2
    assert r"\x1b[2Jhere" in outcome.err
    assert "\x1b" not in outcome.err
    warn = "import logging; from grr_coca.cli import main; main(['--version']); logging.warning('one\\n\x1b[2Jtwo')"
    done = subprocess.run([sys.executable, "-c", warn], capture_output=True, text=True, check=True)
    assert done.stderr == "WARNING: one\n" + r"\x1b[2Jtwo" + "\n"


@pytest.mark.ci
def test_closed_output_ends_the_job_silently(image_files):
    command = [sys.executable, "-m", "grr_coca", "caption", str(image_files[0].parent)]
    with running([*command, "--batch-size", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


# --- Wrong use


@pytest.mark.parametrize("arguments", [["x" * 5000], ["cat.png", "-c", "x" * 5000]])
def test_impossible_file_name_reports_one_line(refused, arguments):
    assert len(refused("caption", *arguments)) < 200


def test_rejects_sidecars_shared_by_two_images(refused, run, image_files):
    image_files[0].with_suffix(".png").write_bytes(image_files[0].read_bytes())
    message = refused("caption", "-c", run.folder, image_files[0].parent, "--sidecar", "txt")
    assert "0.png and" in message
    assert "would be written to 0.txt" in message
    assert not list(image_files[0].parent.glob("*.txt"))


SQUARE = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><path d="M0 0h4v8H0z"/></svg>'


@pytest.mark.ci
def test_svg_file_that_aborts_its_renderer_costs_one_line(grr_coca, tmp_path):
    """A pattern of a height of 10¹¹ made the process end, with exit code 134 and an empty result."""
    pytest.importorskip("resvg_py")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    pattern = b'<pattern id="p" width="5" height="99999999999"><path d="M0 0h3v3z"/></pattern>'
    attack = SQUARE.replace(b"<path", pattern + b'<path d="M0 0L9 90V0Z" fill="url(#p)"/><path')
    (tmp_path / "attack.svg").write_bytes(attack)
    outcome = grr_coca("caption", tmp_path, "--out", tmp_path / "captions.jsonl")
    assert [json.loads(line)["image"] for line in (tmp_path / "captions.jsonl").read_text().splitlines()] == [
        str(tmp_path / "good.png")
    ]
    (lines,) = [line for line in outcome.err.splitlines() if "attack.svg" in line]
    assert "crashes its decoder (SIGABRT)" in lines
