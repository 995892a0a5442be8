"""Captions and keywords in XMP files beside images. exiftool and exiv2 read them, where they are installed."""

import io
import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from support import no_space_left, snapshot

from grr_coca.data.image_files import ImageFile
from grr_coca.infer.outputs.sidecar import XmpError, has_caption, sidecar_to_write, write_sidecar
from grr_coca_search.describe import photo_of
from grr_coca_search.photo import read_image_metadata

PHOTOS = Path(__file__).parents[3] / "search" / "photos"
ODD = "a <red> & \"green\" 'größe' ✓ 𝄞"
RDF = "xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'"
DC = "xmlns:dc='http://purl.org/dc/elements/1.1/'"

# Written for this test with the prefixes and attributes of darktable, escaped newlines, a history and a comment.
DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
   xmp:Rating="3"
   darktable:xmp_version="5"
   darktable:note="two&#xA;lines&#x9;and a tab">
   <!-- a comment -->
   <darktable:history>
    <rdf:Seq>
     <rdf:li darktable:num="0" darktable:operation="exposure" darktable:params="gz04eJxjYGBgYAFiCQYYOOHEgAYY0QVwggZ7"/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
# Another namespace's `description`, all in attributes, and no end tag to write before.
ATTRIBUTES = (
    f"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF {RDF}>"
    "<rdf:Description rdf:about='uuid:1&amp;2' xmlns:crs='http://ns.adobe.com/camera-raw-settings/1.0/' "
    "crs:description='mine' crs:Exposure2012='+0.35'/></rdf:RDF></x:xmpmeta>"
)
TRANSLATED = (
    f"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF {RDF}><rdf:Description rdf:about='' {DC}>"
    "<dc:description><rdf:Alt><rdf:li xml:lang='x-default'>by hand</rdf:li><rdf:li xml:lang='de'>von Hand</rdf:li>"
    "</rdf:Alt></dc:description><dc:subject><rdf:Bag><rdf:li>cat</rdf:li></rdf:Bag></dc:subject>"
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)
EXISTING = {
    "darktable": DARKTABLE.encode(),
    "byte order mark": b"\xef\xbb\xbf" + DARKTABLE.encode(),
    "windows": DARKTABLE.replace("\n", "\r\n").encode(),
    "attributes": ATTRIBUTES.encode(),
    "another prefix": ATTRIBUTES.replace("rdf:", "r:").replace(":rdf=", ":r=").encode(),
    "translated": TRANSLATED.encode(),
    "empty list": TRANSLATED.replace("<rdf:Bag><rdf:li>cat</rdf:li></rdf:Bag>", "<rdf:Bag></rdf:Bag>").encode(),
    "exiftool": (PHOTOS / "sidecar.xmp").read_bytes(),
    "exiv2": (PHOTOS / "exiv2-beside.jpg.xmp").read_bytes(),
}


def xmp_of(path: Path) -> dict:
    """All that Pillow finds in an XMP file: another reader than the one that has found the places to write at."""
    if find_spec("defusedxml") is None:
        pytest.skip("reading XMP needs defusedxml")
    carrier = Image.new("1", (1, 1))
    carrier.info["xmp"] = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    found = carrier.getxmp()["xmpmeta"]["RDF"]["Description"]
    merged: dict = {}
    for one in found if isinstance(found, list) else [found]:
        merged |= one
    return merged


def caption_of(path: Path) -> str:
    items = xmp_of(path)["description"]["Alt"]["li"]
    return next(one["text"] for one in (items if isinstance(items, list) else [items]) if one["lang"] == "x-default")


def keywords_of(path: Path) -> list[str]:
    items = xmp_of(path)["subject"]["Bag"]["li"]
    return items if isinstance(items, list) else [items]


def is_subsequence(part: bytes, whole: bytes) -> bool:
    """True if all bytes are still there, in order: something was inserted, and nothing else was changed."""
    rest = iter(whole)
    return all(byte in rest for byte in part)


def test_new_file_has_caption_and_keywords(tmp_path):
    path = tmp_path / "a.jpg.xmp"
    write_sidecar(path, ODD, ["cat", "a & b", "cat", " "])
    assert caption_of(path) == ODD
    assert keywords_of(path) == ["cat", "a & b"]
    assert has_caption(path)


def test_index_reads_written_sidecars(tmp_path):
    if find_spec("defusedxml") is None:
        pytest.skip("reading XMP needs defusedxml")
    shutil.copy(PHOTOS / "exiftool-iptc.jpg", tmp_path / "a.jpg")
    write_sidecar(sidecar_to_write(tmp_path / "a.jpg"), "a caption", ["cat"])
    file = ImageFile(str(tmp_path / "a.jpg"))
    photo = photo_of(file, read_image_metadata(file.read(), file.name))
    assert photo.keywords == ("zebra", "straße", "cat")


@pytest.mark.parametrize("name", EXISTING)
def test_words_are_inserted_and_every_other_byte_stays(tmp_path, name):
    path = tmp_path / "a.xmp"
    path.write_bytes(EXISTING[name])
    had_caption, before = has_caption(path), xmp_of(path)
    write_sidecar(path, "a red heart", ["heart", "cat"])
    assert is_subsequence(EXISTING[name], path.read_bytes())
    after = xmp_of(path)
    assert {key: after[key] for key in before if key not in ("subject", "description")} == {
        key: value for key, value in before.items() if key not in ("subject", "description")
    }
    assert caption_of(path) == ("by hand" if had_caption else "a red heart")
    assert {"heart", "cat"} <= set(keywords_of(path))
    content = path.read_bytes()
    write_sidecar(path, "another caption", ["heart"])
    assert path.read_bytes() == content, "the second time, nothing is new"


@pytest.mark.parametrize("name", EXISTING)
def test_replacing_a_caption_keeps_translations(tmp_path, name):
    path = tmp_path / "a.xmp"
    path.write_bytes(EXISTING[name])
    for caption in ("a red heart", ODD):
        write_sidecar(path, caption, overwrite=True)
        assert caption_of(path) == caption
    if name == "translated":
        items = xmp_of(path)["description"]["Alt"]["li"]
        assert {"lang": "de", "text": "von Hand"} in items
        expected = TRANSLATED.replace("by hand", ODD.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
        assert path.read_text() == expected


def test_caption_without_a_default_language_gets_one(tmp_path):
    path = tmp_path / "a.xmp"
    path.write_text(TRANSLATED.replace("<rdf:li xml:lang='x-default'>by hand</rdf:li>", ""))
    write_sidecar(path, "a red heart", overwrite=True)
    assert caption_of(path) == "a red heart"
    assert "von Hand" in path.read_text()


def test_only_keywords_can_be_written(tmp_path):
    write_sidecar(tmp_path / "a.xmp", None, ["cat"])
    assert not has_caption(tmp_path / "a.xmp")
    assert keywords_of(tmp_path / "a.xmp") == ["cat"]


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        ("\0\x07bell\x1b[31m", "bell [31m"),
        ("two\nlines\r\n", "two lines"),
        ("\ud800 half", "half"),
        ("\ufffe rest", "rest"),
        ("]]>", "]]>"),
        ("<!--", "<!--"),
    ],
)
def test_characters_that_xml_cannot_hold_are_excluded(tmp_path, caption, kept):
    write_sidecar(tmp_path / "a.xmp", caption, [caption])
    assert caption_of(tmp_path / "a.xmp") == kept
    assert keywords_of(tmp_path / "a.xmp") == [kept]


@pytest.mark.parametrize("caption", ["", " \n", "\0\x07", "\ud800", None])
def test_caption_of_which_nothing_is_left_is_not_written(tmp_path, caption):
    write_sidecar(tmp_path / "new.xmp", caption, ["\0"])
    assert not (tmp_path / "new.xmp").exists()
    write_sidecar(tmp_path / "keywords.xmp", caption, ["cat"])
    assert not has_caption(tmp_path / "keywords.xmp")
    (tmp_path / "old.xmp").write_bytes(TRANSLATED.encode())
    write_sidecar(tmp_path / "old.xmp", caption, overwrite=True)
    assert (tmp_path / "old.xmp").read_bytes() == TRANSLATED.encode()


def test_permissions_of_a_file_stay(tmp_path):
    path = tmp_path / "a.xmp"
    path.write_bytes(EXISTING["darktable"])
    path.chmod(0o640)
    write_sidecar(path, "a red heart")
    assert path.stat().st_mode & 0o777 == 0o640


BOMB = "<!DOCTYPE x [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>" + TRANSLATED.replace("by hand", "&b;")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no XML",
        b"<x:xmpmeta",
        b"<html></html>",
        DARKTABLE.encode()[:400],
        BOMB.encode(),
        DARKTABLE.replace("UTF-8", "UTF-16").encode("utf-16"),
        b"\xff" + DARKTABLE.encode(),
        TRANSLATED.replace("<rdf:Alt>", "").replace("</rdf:Alt>", "").encode(),
        TRANSLATED.replace("<rdf:Bag><rdf:li>cat</rdf:li></rdf:Bag>", "cat").encode(),
        TRANSLATED.replace("<rdf:Bag><rdf:li>cat</rdf:li></rdf:Bag>", "<rdf:Bag/>").encode(),
    ],
    ids=range(11),
)
def test_file_that_cannot_be_changed_safely_is_unchanged(tmp_path, content):
    path = tmp_path / "a.xmp"
    path.write_bytes(content)
    with pytest.raises(XmpError, match=r"a\.xmp: .*was not changed"):
        write_sidecar(path, "a red heart", ["heart"], overwrite=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize("target", ["a.jpg", "nowhere"])
def test_link_is_unchanged(tmp_path, target):
    shutil.copy(PHOTOS / "exiv2.jpg", tmp_path / "a.jpg")
    (tmp_path / "a.jpg.xmp").symlink_to(target)
    before = snapshot(tmp_path)
    for act in (has_caption, lambda path: write_sidecar(path, "a red heart", overwrite=True)):
        with pytest.raises(XmpError, match="not a regular file"):
            act(tmp_path / "a.jpg.xmp")
    assert snapshot(tmp_path) == before


def test_full_disk_leaves_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.xmp"
    path.write_bytes(EXISTING["darktable"])

    monkeypatch.setattr("os.fsync", no_space_left)
    with pytest.raises(OSError, match="No space"):
        write_sidecar(path, "a red heart")
    assert snapshot(tmp_path) == {"a.xmp": EXISTING["darktable"]}


def test_uses_another_programs_file_if_it_is_the_only_one(tmp_path):
    image = tmp_path / "a.jpg"
    assert sidecar_to_write(image).name == "a.jpg.xmp"
    (tmp_path / "a.xmp").touch()
    assert sidecar_to_write(image).name == "a.xmp"
    assert sidecar_to_write(image, is_alone=False).name == "a.jpg.xmp"
    (tmp_path / "a.jpg.xmp").touch()
    assert sidecar_to_write(image).name == "a.jpg.xmp"


# --- Real programs

needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")


@pytest.mark.ci
@needs_exiftool
@pytest.mark.parametrize("name", [None, *EXISTING])
def test_exiftool_reads_written_metadata(tmp_path, name):
    path = tmp_path / "a.xmp"
    if name is not None:
        path.write_bytes(EXISTING[name])
    write_sidecar(path, ODD, ["heart", "a & b"], overwrite=True)
    command = ["exiftool", "-j", "-a", "-struct", "-validate", "-warning", "-XMP:all", str(path)]
    (read,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert read["Description"] == ODD
    assert {"heart", "a & b"} <= set(read["Subject"])
    assert "Warning" not in read
    if name == "darktable":
        assert (read["Rating"], read["History"][0]["Operation"]) == (3, "exposure")
    if name == "exiftool":
        assert (read["Title"], read["DateTimeOriginal"]) == ("Beside", "2023:01:02 03:04:05")


def test_memory_is_bounded_for_hostile_files(tmp_path):
    path = tmp_path / "a.xmp"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(XmpError, match="too large"):
        write_sidecar(path, "a red heart")
    deep = io.BytesIO(b"<a>" * 100_000 + b"</a>" * 100_000).getvalue()
    path.write_bytes(deep)
    with pytest.raises(XmpError, match="not an XMP file"):
        write_sidecar(path, "a red heart")
