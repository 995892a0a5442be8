"""What a search for images leaves out, and links that are followed once."""

import errno
import os
import tracemalloc
from contextlib import contextmanager

import pytest

from grr_coca.common.errors import UserError
from grr_coca.data.image_files import find_images, iterate_images
from grr_coca.data.walk import Exclusions


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A folder of images, and one beside it."""
    for name in ("photos/a.jpg", "photos/raw/b.jpg", "photos/raw/keep.jpg", "photos/2024/c.jpg", "beside/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def names(*arguments: str, exclusions: Exclusions | None = None) -> list[str]:
    return [image.name for image in find_images(arguments, exclusions)]


EVERYTHING = ["photos/a.jpg", "photos/2024/c.jpg", "photos/raw/b.jpg", "photos/raw/keep.jpg"]


# --- Left out


def test_hidden_and_trash_folders_are_excluded_and_reported(library):
    hidden = (".cache/x.jpg", ".Trash-1000/x.jpg", "$RECYCLE.BIN/x.jpg", "2024/@eaDir/x.jpg", "2024/._c.jpg")
    for name in hidden:
        (library / name).parent.mkdir(exist_ok=True)
        (library / name).touch()
    exclusions = Exclusions()
    assert names("photos", exclusions=exclusions) == EVERYTHING
    summary = str(exclusions)
    assert summary.startswith("left out: ")
    assert "2 hidden folders (" in summary
    assert "2 trash folders (" in summary
    assert "1 hidden file (._c.jpg)" in summary
    assert names("photos/$RECYCLE.BIN", "photos/.cache") == ["photos/$RECYCLE.BIN/x.jpg", "photos/.cache/x.jpg"]


def test_no_note_without_exclusions(library):
    exclusions = Exclusions(["nowhere/"])
    assert names("photos", exclusions=exclusions) == EVERYTHING
    assert str(exclusions) == ""


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (["raw/"], ["photos/a.jpg", "photos/2024/c.jpg"]),
        (["*.jpg", "!keep.jpg"], ["photos/raw/keep.jpg"]),
        (["/a.jpg"], EVERYTHING[1:]),
        (["raw/*", "!raw/keep.jpg"], ["photos/a.jpg", "photos/2024/c.jpg", "photos/raw/keep.jpg"]),
        (["raw/", "!raw/keep.jpg"], ["photos/a.jpg", "photos/2024/c.jpg"]),  # as git: nothing comes back from a folder
        (["20??"], ["photos/a.jpg", "photos/raw/b.jpg", "photos/raw/keep.jpg"]),
        (["photos/"], EVERYTHING),  # patterns begin below the argument
        (["# a comment", ""], EVERYTHING),
    ],
)
def test_patterns_follow_gitignore(library, patterns, kept):
    assert names("photos", exclusions=Exclusions(patterns)) == kept
    assert sorted(names("photos/**", exclusions=Exclusions(patterns))) == sorted(kept)


def test_exclusions_by_patterns_are_reported(library):
    exclusions = Exclusions(["raw/", "a.*"])
    names("photos", exclusions=exclusions)
    assert str(exclusions) == "left out: 1 excluded folder (raw), 1 excluded file (a.jpg)"


def test_file_pattern_matches_only_the_name(library):
    assert names("photos/a.jpg", "photos/raw/b.jpg", exclusions=Exclusions(["photos/", "b.*"])) == ["photos/a.jpg"]


def test_error_names_excluded_texts(library):
    for argument in ("photos", "photos/a.jpg", "photos/*.jpg"):
        with pytest.raises(UserError, match=r"no image.*; left out: .*\(a\.jpg"):
            names(argument, exclusions=Exclusions(["*.jpg"]))


def test_invalid_pattern_raises_before_searching():
    with pytest.raises(UserError, match=r"^--exclude: invalid pattern"):
        Exclusions(["!"])


# --- Links


@pytest.mark.parametrize(
    ("links", "more"),
    [
        ({"0": "../beside", "1": "../beside"}, ["photos/0/d.jpg"]),
        ({"0": "raw"}, []),  # a folder keeps its name without links, though this is sorted before it
        *(({"2024/up": target, "up": target}, []) for target in (".", "..", "../..", "2024/..")),
        ({"out": "../beside", "../beside/back": "../photos"}, ["photos/out/d.jpg"]),
        ({"gone.jpg": "nowhere.jpg", "gone": "nowhere"}, []),
    ],
    ids=["once", "inside", "here", "up", "up twice", "down and up", "in a circle", "broken"],
)
def test_links_are_followed_once_and_never_upwards(library, links, more):
    for name, target in links.items():
        (library / name).symlink_to(target)
    assert names("photos") == [*EVERYTHING, *more]


@pytest.mark.parametrize("argument", ["photos", "photos/*.jpg", "photos/**/*.jpg"])
def test_broken_links_to_images_are_reported(library, argument):
    for name in ("gone.jpg", ".gone.jpg", "raw/gone.jpg", "gone.txt", "gone"):
        (library / name).symlink_to("nowhere")
    exclusions = Exclusions(["raw/"])
    assert "photos/a.jpg" in names(argument, exclusions=exclusions)
    assert "1 broken link (gone.jpg)" in str(exclusions)


def test_link_to_a_file_in_an_excluded_folder_is_a_file(library):
    """As in git-annex, where every image is a link into a hidden folder."""
    (library / ".git").mkdir()
    (library / ".git" / "x.jpg").touch()
    for name in ("x.jpg", "y.jpg"):
        (library / name).symlink_to(".git/x.jpg")
    assert names("photos") == ["photos/a.jpg", "photos/x.jpg", "photos/y.jpg", *EVERYTHING[1:]]


@pytest.mark.parametrize("backwards", [False, True])
def test_first_link_by_name_counts_in_any_listing_order(library, monkeypatch, backwards):
    scandir = os.scandir

    @contextmanager
    def listed(folder):
        with scandir(folder) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=backwards)

    for name in "01":
        (library / name).symlink_to("../beside")
    monkeypatch.setattr(os, "scandir", listed)
    assert names("photos") == [*EVERYTHING, "photos/0/d.jpg"]


# --- Drives that vanish, and many files


@pytest.mark.parametrize("number", [errno.EHOSTDOWN, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("after", [0, 1])
def test_folder_on_a_lost_drive_is_a_failed_image(library, monkeypatch, number, after):
    (library / "raw" / "c.jpg").touch()
    scan = os.scandir

    class Vanishing:
        def __init__(self, path):
            self._entries = scan(path)
            self._left = after if path.endswith("raw") else 99

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._entries.close()

        def __iter__(self):
            for entry in self._entries:
                if not self._left:
                    raise OSError(number, os.strerror(number))
                self._left -= 1
                yield entry

    monkeypatch.setattr(os, "scandir", Vanishing)
    found = find_images(["photos"])
    (failed,) = (image for image in found if image.hides_others)
    assert failed.name == "photos/raw"
    assert len(found) == 3 + after
    with pytest.raises(UserError, match=r"^photos/raw: cannot be read"):
        failed.read()


def test_unreadable_file_does_not_hide_others(library, monkeypatch):
    """A file of a network drive that somebody has just deleted, for example."""
    scan = os.scandir

    class Stale:
        def __init__(self, entry):
            self.name, self.path = entry.name, entry.path
            self.is_symlink = entry.is_symlink
            self.is_file = entry.is_file

        def is_dir(self):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    @contextmanager
    def scanned(path):
        with scan(path) as entries:
            yield (Stale(entry) if entry.name == "b.jpg" else entry for entry in entries)

    monkeypatch.setattr(os, "scandir", scanned)
    found = find_images(["photos"])
    assert sorted(image.name for image in found) == sorted(EVERYTHING)
    (failed,) = (image for image in found if image.name == "photos/raw/b.jpg")
    with pytest.raises(UserError, match=r"^photos/raw/b\.jpg: cannot be read \(Stale"):
        failed.read()


def test_folder_without_permission_is_a_failed_image(library, monkeypatch):
    """Root may read them all, so the answer of the system is made here."""
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not path.endswith("raw") and may(path, mode))
    found = find_images(["photos"])
    assert [image.name for image in found] == ["photos/a.jpg", "photos/2024/c.jpg", "photos/raw"]
    with pytest.raises(UserError, match=r"^photos/raw: cannot be read \(Permission denied\)"):
        found[-1].read()


def test_many_files_in_one_folder_take_little_memory(tmp_path):
    count = 1000
    for number in range(count):
        (tmp_path / f"IMG_{number:06}.jpg").touch()
    next(iterate_images(str(tmp_path)))  # what is imported late
    tracemalloc.start()
    try:
        assert sum(1 for _ in iterate_images(str(tmp_path))) == count
        streamed = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        found = find_images([str(tmp_path)])
        listed = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert streamed < 120 * count, "the names of one folder"
    assert listed < 450 * count + 2 * len(found[0].name) * count
