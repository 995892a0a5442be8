"""`grr-coca index`, `search` and `duplicates`."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from processes import running

import grr_coca as package
from grr_coca_search.relevance import MIN_RELEVANCE

DRAWINGS = Path(__file__).parents[3] / "docs" / "drawings"


@pytest.fixture
def search(grr_coca, drawings):
    """Search with `--json`, and return the hits."""

    def run(*arguments):
        result = grr_coca("search", drawings / "index", *arguments, "--json")
        assert result.code == 0, result.err
        return json.loads(result.out)

    return run


def stems(hits):
    return [Path(hit["path"]).stem for hit in hits]


# --- index


def test_missing_current_folder_reports_one_line(refused, drawings, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    message = refused("search", drawings / "index", "guitar")
    assert message == "error: the current folder no longer exists; change to another folder\n"


def test_index_is_made_and_brought_up_to_date(grr_coca, tmp_path, drawings):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted((drawings / "drawings").iterdir())[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    result = grr_coca("index", folder, "--out", tmp_path / "index")
    assert result.code == 0, result.err
    assert re.match(rf"{tmp_path}/index: 2 images \(2 new\) in [\d.]+ s\n", result.out)
    assert "1 of 3 images cannot be read:\n" in result.err
    assert "broken.png: not an image" in result.err
    (folder / "cactus.webp").unlink()
    result = grr_coca("index", "--out", tmp_path / "index")
    assert result.code == 0
    assert "1 image (1 removed)" in result.out
    assert "(nothing new)" in grr_coca("index", folder, "--out", tmp_path / "index").out


def test_images_of_a_renamed_folder_can_be_removed(grr_coca, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DRAWINGS, "before")
    grr_coca("index", "before", "--out", "index")
    Path("before").rename("now")
    grr_coca("index", "now", "--out", "index")
    (hit,) = json.loads(grr_coca("search", "index", "snowman", "-n", 1, "--json").out)
    assert hit["path"] == str(tmp_path / "now" / "snowman.webp"), "the one that is there comes first"
    assert hit["copies"] == [str(tmp_path / "before" / "snowman.webp")]
    command = re.search("`grr-coca (.*)`", refused("index", "--out", "index"))[1]
    assert grr_coca(*shlex.split(command)).out == "index: 6 images forgotten\n"
    assert "6 images (nothing new)" in grr_coca("index", "--out", "index").out


def test_index_without_any_image_that_can_be_read_fails(grr_coca, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"x")
    assert grr_coca("index", tmp_path / "bad.png", "--out", tmp_path / "index").code == 1


@pytest.mark.ci
def test_index_that_is_watched_follows_its_folder(tmp_path, drawings):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.webp").write_bytes((DRAWINGS / "guitar.webp").read_bytes())
    named = tmp_path / "named.webp"
    code = """if True:
        import runpy
        from grr_coca_search.commands import index
        index._MIN_SECONDS_BETWEEN_SCANS = 0
        runpy.run_module("grr_coca", run_name="__main__")
    """
    command = [sys.executable, "-c", code, "index", str(folder), str(named), "--out", str(tmp_path / "index")]
    command += ["--watch"]
    named.write_bytes((DRAWINGS / "sailboat.webp").read_bytes())
    with running(command, stdout=subprocess.PIPE, text=True) as process:
        assert "2 images (2 new)" in process.stdout.readline()
        named.unlink()
        assert "1 image (1 removed)" in process.stdout.readline()
        (folder / "b.webp").write_bytes((DRAWINGS / "snowman.webp").read_bytes())
        assert "2 images (1 new)" in process.stdout.readline()
        named.write_bytes((DRAWINGS / "sailboat.webp").read_bytes())
        assert "3 images (1 new)" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


# --- search


def test_words_find_the_image_that_is_meant(search):
    hits = search("guitar", "-n", 3)
    assert hits[0].keys() == {"path", "score", "relevance", "caption", "copies", "is_there", "fields", "engine"}
    assert Path(hits[0]["path"]).stem.startswith("guitar")
    assert hits[0]["relevance"] >= MIN_RELEVANCE > hits[1]["relevance"]
    assert len(hits) == 3


def test_image_finds_itself_and_with_text_matches_of_both(search):
    assert stems(search("--image", DRAWINGS / "sailboat.webp", "-n", 1)) == ["sailboat"]
    assert stems(search("a red apple", "--image", DRAWINGS / "red-apple.webp", "-n", 1)) == ["red-apple"]


def test_excluded_content_is_ranked_lower(search):
    asked = ["guitar", "snowman", "--weights", 1, 1]
    both = stems(search(*asked))
    assert {both[0].partition("-")[0], both[1].partition("-")[0]} == {"guitar", "snowman"}
    assert search("guitar", "snowman", "--weights", 10, 1)[0]["caption"] == "guitar"
    ranks = [
        stems(search(*words)).index("red-apple") for words in (["red apple"], ["guitar", "--without", "red apple"])
    ]
    assert ranks[0] == 0 < ranks[1]


def test_list_can_be_passed_piece_by_piece(search):
    both = search("red apple", "--without", "guitar", "snowman")
    assert search("red apple", "--without", "guitar", "--without", "snowman") == both
    assert search("red apple", "--without", "snowman") != both


def test_filter_applies_to_its_selection(search):
    assert stems(search("guitar", "--where", "width < 50")) == ["guitar-small", "snowman-small"]
    assert search("guitar", "--where", "folder = 'nothing'") == []


def test_images_that_look_the_same_are_one_hit(search, grr_coca, drawings):
    (hit,) = search("guitar", "-n", 1)
    assert len(hit["copies"]) == 1
    assert {Path(hit["path"]).stem, Path(hit["copies"][0]).stem} == {"guitar", "guitar-small"}
    result = grr_coca("duplicates", drawings / "index", "--json")
    groups = [sorted(Path(path).stem for path in json.loads(line)["paths"]) for line in result.out.splitlines()]
    assert sorted(groups) == [["guitar", "guitar-small"], ["snowman", "snowman-small"]]
    result = grr_coca("duplicates", drawings / "index")
    assert result.out.endswith("2 groups with 2 surplus images in index\n")
    assert re.search(r"guitar\.webp\n    \S*guitar-small\.png\n", result.out), "the larger one first"


def test_hit_for_users_has_rank_relevance_caption_and_path(grr_coca, drawings, monkeypatch):
    monkeypatch.chdir(drawings)
    result = grr_coca("search", "index", "guitar", "-n", 2)
    first, second = result.out.splitlines()
    assert re.fullmatch(r"  1  +\d+%  guitar +drawings/guitar\S+  \(1 more that look the same\)", first)
    assert second.startswith("  2  ")
    assert result.err == ""


def test_reports_that_no_image_matches(grr_coca, drawings):
    result = grr_coca("search", drawings / "index", "tax return form")
    assert result.err == "no good match; the closest of 8 images:\n"
    wide = ("search", drawings / "index", "guitar", "--where", "width > 9999")
    assert grr_coca(*wide).err == "no image matches --where (searched: 8)\n"
    assert grr_coca(*wide, "--min-relevance", 0.5).err.endswith("or none of them matches --where\n")


def test_one_image_has_no_relevance(grr_coca, tmp_path):
    grr_coca("index", DRAWINGS / "guitar.webp", "--out", tmp_path / "index")
    result = grr_coca("search", tmp_path / "index", "guitar")
    assert result.out.startswith("  1     ?  guitar  ")
    assert "too few different images to estimate relevance; the closest of 1:\n" in result.err
    assert json.loads(grr_coca("search", tmp_path / "index", "guitar", "--json").out)[0]["relevance"] is None


def test_paths_for_pipes_end_with_null_bytes(grr_coca, drawings):
    result = grr_coca("search", drawings / "index", "guitar", "-0", "-n", 2)
    assert result.out.count("\0") == 2
    assert result.out.endswith("\0")


def test_name_words_count_only_for_plain_text_queries(search):
    assert set(stems(search("small", "-n", 2))) == {"guitar-small", "snowman-small"}
    by_embeddings = stems(search("small", "--no-hybrid"))
    assert stems(search("small")) != by_embeddings
    assert stems(search("small", "--weights", 1)) == by_embeddings
    assert stems(search("small", "--without", "guitar", "-n", 2)) == stems(
        search("small", "--without", "guitar", "-n", 2, "--no-hybrid")
    )


def test_image_that_vanished_is_shown_as_such(grr_coca, tmp_path):
    picture = tmp_path / "guitar.webp"
    picture.write_bytes((DRAWINGS / "guitar.webp").read_bytes())
    grr_coca("index", picture, "--out", tmp_path / "index")
    picture.unlink()
    assert "(gone since it was indexed)" in grr_coca("search", tmp_path / "index", "guitar").out
    assert json.loads(grr_coca("search", tmp_path / "index", "guitar", "--json").out)[0]["is_there"] is False


# --- Python


def test_index_is_a_context_manager_in_python(tmp_path):
    with package.Index.open(tmp_path / "index", "pictograms", create=True) as index:
        assert index.add(DRAWINGS).new == 6
        assert len(index) == 6
        (hit,) = index.search("guitar", n=1)
        assert hit.path == str(DRAWINGS / "guitar.webp")
        assert (hit.caption, hit.is_there, hit.copies) == ("guitar", True, ())
        assert index.search(image=Image.open(DRAWINGS / "sailboat.webp"), n=1)[0].entry.title == "sailboat"
        assert index.delete(DRAWINGS / "guitar.webp") == 1
        assert index.delete(where="title like 's%'") == 2
        assert len(index) == 3
        assert index.refresh().new == 3
    with package.Index.open(tmp_path / "index") as index:
        assert len(index) == 6
        assert index.search("tax return form").verdict == "nothing"


def test_index_goes_through_a_file_and_is_searched_again(grr_coca, drawings, tmp_path):
    result = grr_coca("export", "index", drawings / "index", "--out", tmp_path / "a.parquet")
    assert "8 images of" in result.out
    imported = grr_coca("import", "index", tmp_path / "a.parquet", "--out", tmp_path / "index")
    assert "8 images imported from" in imported.out
    both = [grr_coca("search", index, "guitar", "--json").out for index in (drawings / "index", tmp_path / "index")]
    assert both[0] == both[1]
