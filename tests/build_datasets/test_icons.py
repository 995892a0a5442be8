"""The corpus `icons`, built from a sample of 400 icons that is laid out as the real packages are."""

import hashlib
import io
import json
import re
import shutil
import stat
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from icon_drawings import draw_icon, icon_svg, picture_signature, read_drawn
from icon_pairs import TEST, VAL, HeldOut, has_near
from icon_sources import PACKAGES, Archives

import icons
from grr_coca.common.errors import UserError
from grr_coca.common.files import user_cache
from grr_coca.data.isolated import decode_image
from grr_coca.data.sources.open import open_source
from grr_coca_icons.sources.iconify import packages_folder

pytest.importorskip("resvg_py")

SAMPLE = Path(__file__).parent / "icon_sample"
ROOT = Path(__file__).parents[2]
HELD_OUT = HeldOut.read()


def archives_in(folder: Path) -> Archives:
    """Archives whose pinned content is what lies in a folder."""
    found = {}
    for key, package in PACKAGES.items():
        sha256 = hashlib.sha256((folder / package.archive).read_bytes()).hexdigest()
        found[key] = replace(package, sha256=sha256)
    return Archives(folder, found)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return icons.build(lambda *_: None, tmp_path_factory.mktemp("corpus") / "icons", archives_in(SAMPLE))


def with_icons(folder: Path, prefix: str, change: Callable[[dict], None]) -> Archives:
    """The sample with one set alone, changed."""
    shutil.copytree(SAMPLE, folder)
    path = folder / PACKAGES["iconify"].archive
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    about = json.loads(files[f"package/json/{prefix}.json"])
    change(about)
    listed = json.loads(files["package/collections.json"])
    files = {"package/collections.json": {prefix: listed[prefix]}, f"package/json/{prefix}.json": about}
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            packed = json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(packed)
            tar.addfile(info, io.BytesIO(packed))
    return archives_in(folder)


def test_corpus_is_built_in_the_folder_of_the_icon_sets(tmp_path):
    """Sets that commands read are kept in the same cache."""
    about = {"prefix": "tiny", "icons": {"dot": {"body": "<circle cx='8' cy='8' r='4'/>"}}, "width": 16, "height": 16}
    (tmp_path / "tiny.json").write_text(json.dumps(about))
    assert len(open_source(str(tmp_path / "tiny.json"))) == 1
    packages_folder().mkdir(parents=True)
    built = icons.build(lambda *_: None, archives=archives_in(SAMPLE))
    assert (built / "card.json").exists()
    assert built == user_cache() / "icons"


def test_card_has_exclusions_authors_and_licences(corpus):
    card = json.loads((corpus / "card.json").read_text())
    assert card["sets_left_out"] == {
        "another corpus, or signs of software": 1,
        "emoji, logos or flags": 7,
        "licence": 3,
    }
    assert card["sets"]["tabler"] | {"pairs": 0, "left_out": {}} == {
        "title": "Tabler Icons",
        "author": "Paweł Kuna",
        "url": "https://github.com/tabler/tabler-icons",
        "licence": "MIT",
        "pairs": 0,
        "split": "test_family_tabler",
        "left_out": {},
    }
    page = (corpus / "card.md").read_text()
    assert all(f"(`{prefix}`)" in page for prefix in card["sets"])


def test_interrupted_build_continues_to_the_same_bytes(tmp_path, corpus):
    archives = archives_in(SAMPLE)

    def stop(stage: str, done: int) -> None:
        if (stage, done) == ("drawings", 200):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        icons.build(stop, tmp_path / "icons", archives)
    assert not (tmp_path / "icons").exists()
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "icons.work").glob("*.npz")}
    assert drawn
    _require_as_drawn(archives, tmp_path / "icons.work")
    calls = []
    icons.build(lambda stage, done: calls.append((stage, done)), tmp_path / "icons", archives)
    assert sum(stage == "drawings" for stage, _ in calls) < 300
    assert files(tmp_path / "icons") == files(corpus)
    assert not (tmp_path / "icons.work").exists()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _require_as_drawn(archives: Archives, work: Path) -> None:
    """A set that was kept holds what its icons look like."""
    kept = read_drawn(work, "bi")
    about = archives.json("iconify", "json/bi.json")
    assert kept.picture(3) == draw_icon(icon_svg(about["icons"][kept.names[3]], about)).webp


def test_bytes_equal_those_of_other_machines(corpus):
    if icons.odd_versions():
        pytest.skip("drawn with other versions")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(corpus.glob("*.tar")))).hexdigest()
    assert digest[:16] == "b59aaf41ce9b6c13"


def test_unrenderable_icons_are_counted_and_empty_ones_dropped(tmp_path):
    def spoil(about: dict) -> None:
        first, second, third, *_ = about["icons"]
        about["icons"][first] = {"body": "<path d="}
        about["icons"][second] = {"body": "<g/>"}
        about["icons"][third]["hidden"] = True

    archives = with_icons(tmp_path / "archives", "carbon", spoil)
    folder = icons.build(lambda *_: None, tmp_path / "icons", archives)
    left_out = json.loads((folder / "card.json").read_text())["sets"]["carbon"]["left_out"]
    assert (left_out["not drawn"], left_out["empty"], left_out["hidden"]) == (1, 1, 1)


def test_rejects_a_changed_package_with_its_checksum(tmp_path):
    shutil.copytree(SAMPLE, tmp_path / "archives")
    archives = archives_in(tmp_path / "archives")
    path = tmp_path / "archives" / PACKAGES["mdi"].archive
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{path.name}: broken or changed: its sha256 is [0-9a-f]{{64}}, expected"):
        icons.build(lambda *_: None, tmp_path / "icons", archives)


def test_missing_npm_error_names_files_and_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as error:
        icons.build(lambda *_: None, tmp_path / "icons")
    assert "npm is not installed" in str(error.value)
    assert "npm pack @iconify/json@2.2.535  # iconify-json-2.2.535.tgz" in str(error.value)
    assert str(tmp_path / "cache/grr-coca/packages") in str(error.value)


def fake_npm(folder: Path, script: str) -> None:
    path = folder / "npm"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_npm_installs_missing_packages(tmp_path, monkeypatch):
    pinned = archives_in(SAMPLE)
    fake_npm(tmp_path, f"cp {SAMPLE / PACKAGES['iconify'].archive} .")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    shutil.copytree(SAMPLE, tmp_path / "archives")
    (tmp_path / "archives" / PACKAGES["iconify"].archive).unlink()
    done = []
    Archives(tmp_path / "archives", pinned.packages).fetch(done.append)
    assert done == [1, 2, 3, 4, 5]
    assert files(tmp_path / "archives") == files(SAMPLE)


def test_does_not_replace_other_files_or_folders(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").touch()
    for target, message in (
        (tmp_path, "contains other files; pass a new"),
        (tmp_path / "mine.txt", "expected a folder, found a file; pass a new"),
    ):
        with pytest.raises(UserError, match=f"{target.name}: {message} folder"):
            icons.build(pytest.fail, target, archives_in(SAMPLE))
    assert (tmp_path / "mine.txt").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(UserError, match="has no folder name"):
        icons.build(pytest.fail, Path())
    with pytest.raises(UserError, match="the current folder cannot be replaced"):
        icons.build(pytest.fail, empty)


def test_existing_corpus_is_not_rebuilt(tmp_path, corpus, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert icons.build(lambda *_: None, corpus) == corpus


def test_full_disk_raises_before_downloads(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**8)
    monkeypatch.setattr(icons.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"0\.1 GB are free, and the corpus takes 1\.3"):
        icons.build(lambda *_: None, tmp_path / "icons", archives_in(SAMPLE))


def test_every_set_has_a_family_and_a_notice():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    notice = notice[notice.index("\nIcons, which") : notice.index("\nMIT License")]
    named = set(re.findall(r"\(([a-z0-9-]+)\), by", notice))
    assert named == set(HELD_OUT.families)
    assert {*VAL, *TEST} <= named


def test_no_training_set_is_of_a_held_out_family():
    held_out = {HELD_OUT.family_of(prefix) for prefix in (*VAL, *TEST)}
    assert len({HELD_OUT.family_of(prefix) for prefix in TEST}) == len(TEST) >= 5
    assert not {HELD_OUT.family_of(prefix) for prefix in VAL} & {HELD_OUT.family_of(prefix) for prefix in TEST}
    train = {prefix for prefix in HELD_OUT.families if HELD_OUT.split_of(prefix) == "train"}
    assert not {HELD_OUT.family_of(prefix) for prefix in train} & held_out


def test_no_training_image_is_a_test_image_of_another_corpus():
    found = []
    for path in sorted((ROOT / "datasets").glob("*/test*.tar")):
        source = open_source(str(path))
        pairs_of = (source[index] for index in range(0, len(source), 10))
        found += [picture_signature(decode_image(pair.image, pair.name)).ravel() for pair in pairs_of]
    assert has_near(np.stack(found), HELD_OUT.signatures, 0).all()
