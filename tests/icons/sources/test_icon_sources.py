"""Icons come in from where they lie: Iconify's JSON and packages, sprites, fonts."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from icon_packages import write_package
from support import write_tar

from grr_coca.common.errors import UserError
from grr_coca.data.image_files import iterate_images
from grr_coca.data.images import MAX_BYTES
from grr_coca.data.isolated import decode_image
from grr_coca.data.sources.base import BadSample, Cause
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import source_digest
from grr_coca_icons.icon_names import words_of_name
from grr_coca_icons.sources.icon_set import Icon, IconSet
from grr_coca_icons.sources.iconify import packages_folder, parse_json
from grr_coca_icons.sources.open_icons import open_icons, retired_icons

SQUARE = '<path d="M2 2h8v8h-8z"/>'
SET = {
    "prefix": "tiny",
    "info": {"name": "Tiny Icons", "author": {"name": "A. Uthor"}, "license": {"title": "MIT License", "spdx": "MIT"}},
    "icons": {
        "box": {"body": SQUARE},
        "bar": {"body": '<path d="M0 0h12v4h-12z"/>'},
        "old": {"body": SQUARE, "hidden": True},
    },
    "aliases": {
        "square": {"parent": "box"},
        "quad": {"parent": "square"},
        "bar-down": {"parent": "bar", "rotate": 2},
        "pole": {"parent": "bar", "rotate": 1},
        "lost": {"parent": "nothing"},
        "round": {"parent": "round"},
    },
    "width": 12,
    "height": 12,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test alone, in which no package lies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An `npm` that knows one package, and notes how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write_package(folder / "tiny.tgz", SET, SET["info"])
    script = f"""#!/bin/sh
echo "$@" >> {folder}/calls
for last; do :; done
case "$last" in
  @iconify-json/tiny|@iconify-json/tiny@1.2.3) cp {folder}/tiny.tgz iconify-json-tiny-1.2.3.tgz;;
  @iconify-json/tiny@*) echo "npm error code ETARGET" >&2; exit 1;;
  @iconify-json/slow) exec sleep 60;;
  @iconify-json/behind-a-wall) echo "npm error code ECONNREFUSED" >&2; exit 1;;
  *) echo "npm error code E404" >&2; exit 1;;
esac
"""
    (folder / "npm").write_text(script)
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def drawn(data: bytes) -> np.ndarray:
    """Where an icon has ink, 12 × 12."""
    image = decode_image(data, "an icon").convert("L").resize((12, 12))
    return np.asarray(image) < 128


def by_name(argument: Path | str) -> dict:
    return {file.name.rpartition(": ")[2]: file for file in iterate_images(str(argument))}


@pytest.fixture
def json_file(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(SET))
    return path


def test_style_comes_from_the_name_or_the_strokes():
    stroked, filled = '<path fill="none" stroke="currentColor"/>', '<path stroke="none"/>'
    names = {"home": stroked, "home-20-solid": filled, "home-filled": filled, "cog": filled, "plus-alt": filled}
    icons = IconSet(prefix="tiny", icons=[Icon(name, f"<svg>{body}</svg>") for name, body in names.items()])
    styles = {icon.name: icons.fields(icon)["style"] for icon in icons.icons}
    assert styles == {
        "home": "outline",
        "home-20-solid": "solid",
        "home-filled": "filled",
        "cog": "regular",
        "plus-alt": "regular",
    }


# --- Iconify


def test_iconify_file_yields_icons_with_set_metadata(json_file):
    found = by_name(json_file)
    assert list(found) == ["box", "bar", "bar-down", "pole"], "neither hidden icons nor names that lead nowhere"
    box = found["box"]
    assert box.name == f"{json_file}: box"
    assert box.fields() == {
        "icon": "tiny:box",
        "set": "Tiny Icons",
        "style": "regular",
        "licence": "MIT",
        "author": "A. Uthor",
        "aliases": "square, quad",
    }
    assert box.keywords == ("square", "quad")
    assert drawn(box.read())[3:9, 3:9].all()
    assert not drawn(box.read())[:, 11].any()


def test_alias_that_rotates_its_icon_is_a_separate_icon(json_file):
    found = by_name(json_file)
    bar, down, pole = (drawn(found[name].read()) for name in ("bar", "bar-down", "pole"))
    assert bar[1].all()
    assert not bar[8].any()
    assert np.array_equal(down, bar[::-1])
    assert np.array_equal(pole, np.rot90(bar, -1)), "clockwise"


CORNER = {"body": '<path d="M0 0h12v4h-8v8h-4z"/>'}  # thick at the top and on the left


@pytest.mark.parametrize(
    ("aliases", "seen"),
    [
        ({"a": {"parent": "corner", "hFlip": True}}, lambda ink: ink[:, ::-1]),
        ({"a": {"parent": "corner", "vFlip": True}}, lambda ink: ink[::-1]),
        ({"a": {"parent": "corner", "hFlip": True, "rotate": 1}}, lambda ink: np.rot90(ink[:, ::-1], -1)),
        ({"a": {"parent": "b", "rotate": 3}, "b": {"parent": "corner", "rotate": 2}}, lambda ink: np.rot90(ink, -1)),
        ({"a": {"parent": "b", "hFlip": True}, "b": {"parent": "corner", "hFlip": True}}, lambda ink: ink),
        ({"a": {"parent": "corner", "left": 6, "width": 6, "height": 6}}, lambda ink: np.mgrid[:12, :12][0] < 8),
        ({"a": {"parent": "b", "left": 0}, "b": {"parent": "corner", "left": 6}}, lambda ink: ink),
    ],
    ids=["across", "down", "across, then turned", "turned twice", "across twice", "a part", "of two, the outer"],
)
def test_alias_of_an_alias_combines_transformations(tmp_path, aliases, seen):
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps({"prefix": "x", "icons": {"corner": CORNER}, "aliases": aliases, "width": 12, "height": 12})
    )
    found = {name: drawn(file.read()) for name, file in by_name(path).items()}
    assert np.array_equal(found["a"], seen(found["corner"]))


def test_hidden_alias_and_one_of_a_broken_icon_are_excluded(tmp_path):
    turned = {"hidden": {"parent": "corner", "rotate": 1, "hidden": True}, "lost": {"parent": "broken", "rotate": 1}}
    icons = {"corner": CORNER, "broken": []}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"prefix": "x", "icons": icons, "aliases": turned}))
    assert list(by_name(path)) == ["corner", "broken"]


def test_folder_with_a_file_of_the_same_name_is_not_a_package(tmp_path):
    (tmp_path / "icons.json").write_text("{}")
    (tmp_path / "a.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 12 12">{SQUARE}</svg>')
    (image,) = iterate_images(str(tmp_path))
    assert image.name == str(tmp_path / "a.svg")


@pytest.mark.parametrize("pack", [True, False], ids=["archive", "folder"])
def test_package_on_disk_is_read_unchanged(tmp_path, pack):
    bare = {key: value for key, value in SET.items() if key != "info"}
    if pack:
        path = write_package(tmp_path / "iconify-json-tiny-1.2.3.tgz", bare, SET["info"])
    else:
        path = tmp_path / "package"
        path.mkdir()
        (path / "icons.json").write_text(json.dumps(bare))
        (path / "info.json").write_text(json.dumps(SET["info"]))
    found = by_name(path)
    assert found["bar"].fields()["licence"] == "MIT"
    assert len(open_source(path)) == len(found)


def test_npm_fetches_a_set_once_and_runs_no_script(npm, monkeypatch):
    first = by_name("iconify:tiny")
    assert first["box"].name == "iconify:tiny: box"
    assert first["box"].fields()["package"].startswith("@iconify-json/tiny@1.2.3 sha256-")
    assert open_source("iconify:tiny").container(0) == "iconify:tiny"
    again = by_name("iconify:tiny")
    assert again.keys() == first.keys()
    (call,) = (npm / "calls").read_text().splitlines()
    assert "--ignore-scripts" in call
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert by_name("iconify:tiny@1.2.3").keys() == first.keys(), "offline afterwards"


def test_corrupt_package_in_the_cache_reports_one_line(npm):
    by_name("iconify:tiny")
    path = packages_folder() / "iconify-json-tiny-1.2.3.tgz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"corrupt npm package .*delete the file") as caught:
        by_name("iconify:tiny")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"icons.json": b"{}" + b" " * 100}, r"icons\.json is too large: 102 bytes \(limit 100\)"),
        (
            {"index.js": b""},
            "this npm package has no icons.json; pass a package of the scope @iconify-json, such as "
            "@iconify-json/lucide",
        ),
    ],
)
def test_invalid_archive_raises(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr("grr_coca_icons.sources.iconify.MAX_BYTES", 100)
    write_tar(tmp_path / "x.tgz", {f"package/{name}": data for name, data in content.items()}, "w:gz")
    with pytest.raises(UserError, match=rf"x\.tgz: .*{message}"):
        by_name(tmp_path / "x.tgz")


def test_package_of_another_set_in_the_cache_is_ignored():
    write_package(packages_folder() / "iconify-json-lucide-1.0.0.tgz", SET)
    with pytest.raises(
        UserError, match=r"lucide-1\.0\.0\.tgz: contains the set 'tiny' instead of 'lucide'; delete the file"
    ):
        by_name("iconify:lucide")


def test_missing_npm_error_names_file_and_folder(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError) as caught:
        by_name("iconify:lucide")
    message = str(caught.value)
    assert "npm pack @iconify-json/lucide" in message
    assert "iconify-json-lucide-VERSION.tgz" in message
    assert str(packages_folder()) in message


def test_offline_fetches_nothing(npm, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="--offline prevents downloads"):
        by_name("iconify:tiny")
    assert not (npm / "calls").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("iconify:luicde", "package @iconify-json/luicde not found; did you mean 'lucide'"),
        ("iconify:tiny@9.9.9", "version not found: @iconify-json/tiny@9.9.9"),
        ("iconify:behind-a-wall", "npm pack @iconify-json/behind-a-wall failed (npm error code ECONNREFUSED); on a"),
        ("iconify:", "expected iconify:PREFIX"),
        ("iconify:../../etc", "expected iconify:PREFIX"),
        ("iconify:tiny --registry=http://x", "expected iconify:PREFIX"),
    ],
)
def test_unknown_set_reports_one_line(npm, argument, message):
    with pytest.raises(UserError) as caught:
        by_name(argument)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unwritable_npm_cache_raises(npm, cache):
    cache.write_text("in the way")
    with pytest.raises(UserError, match=r"cache/.*packages: cannot be written \(Not a directory\)"):
        by_name("iconify:tiny")


def test_hanging_npm_times_out(npm, monkeypatch):
    monkeypatch.setattr("grr_coca_serve.npm._SECONDS", 0.2)
    with pytest.raises(UserError, match="did not answer within"):
        by_name("iconify:slow")


@pytest.mark.slow
def test_real_npm_fetches_a_real_set():
    found = by_name("iconify:geo")
    assert len(found) > 10
    assert "sha256-" in next(iter(found.values())).fields()["package"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prefix": "x", "icons": []}', "not an Iconify set"),
        ('{"prefix": "x", "icons": {}}', "has no icons"),
        ('{"prefix": "x", "icons": {"a"', "not valid JSON"),
        ('{"icons": {"a": {"body": ""}}}', "an Iconify icon set"),
        ("[1, 2]", "an Iconify icon set"),
    ],
)
def test_json_that_is_not_an_icon_set_reports_one_line(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        by_name(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_array_is_not_an_iconify_set():
    with pytest.raises(UserError, match=r"x\.json: not an Iconify set: 'prefix' and 'icons' are missing"):
        parse_json(b"[1, 2]", "x.json")


def test_retired_icon_with_half_a_surrogate_pair_is_read(tmp_path):
    path = tmp_path / "x.json"
    icons = {"box": {"body": SQUARE}, "old": {"body": "<text>\ud800</text>", "hidden": True}}
    path.write_text(json.dumps({"prefix": "x", "icons": icons}))
    (old,) = retired_icons(str(path))
    assert b"<text>?</text>" in old.read()


def test_invalid_icons_of_a_set_do_not_affect_others(tmp_path):
    icons = {
        "good": {"body": SQUARE},
        "none": {},
        "list": [],
        "text": {"body": 7},
        "wide": {"body": SQUARE, "width": 1e300},
        "nan": {"body": SQUARE, "width": float("nan")},
        "flat": {"body": SQUARE, "height": 0},
        "endless": {"body": "x" * 2_000_000},
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"prefix": "x", "icons": icons}))
    found = by_name(path)
    assert drawn(found["good"].read()).any()
    for name in icons.keys() - {"good"}:
        with pytest.raises(UserError, match=f": {name}: "):
            found[name].read()


# --- Sprites

SPRITE = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" style="display:none">
  <defs><path id="shape" d="M2 2h8v8h-8z"/><linearGradient id="blue"><stop stop-color="#008"/></linearGradient></defs>
  <symbol id="box" viewBox="0 0 12 12"><use xlink:href="#shape"/></symbol>
  <symbol id="bar" viewBox="0 0 12 12" fill="#008"><path d="M0 0h12v4h-12z"/></symbol>
  <symbol id="sky" viewBox="0 0 12 12"><path d="M2 2h8v8h-8z" fill="url(#blue)"/></symbol>
  <symbol id="bar" viewBox="0 0 12 12"><path d="M0 0h1v1h-1z"/></symbol>
  <symbol id="flat" viewBox="0 0 12 0"><path d="M0 0h1v1h-1z"/></symbol>
  <symbol viewBox="0 0 12 12"/>
</svg>"""


def test_sprite_symbols_are_icons_with_their_references(tmp_path):
    path = tmp_path / "sprite.svg"
    path.write_text(SPRITE)
    found = by_name(path)
    assert list(found) == ["box", "bar", "sky", "flat"], "of two of one name, the first"
    for name in ("box", "sky"):
        assert drawn(found[name].read())[3:9, 3:9].all()
    assert drawn(found["bar"].read())[1].all()
    assert found["box"].fields()["icon"] == "sprite:box"
    with pytest.raises(UserError, match="flat: its viewBox is empty"):
        found["flat"].read()


def test_symbol_may_refer_to_itself_and_to_missing_ids(tmp_path):
    path = tmp_path / "sprite.svg"
    parts = f'<g id="own">{SQUARE}</g><use href="#own"/><use href="#gone"/><use href="https://example.org/#a"/>'
    symbol = f'<symbol id="a" viewBox="0 0 12 12">{parts}</symbol>'
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg"><!-- made by hand -->{symbol}</svg>')
    assert drawn(by_name(path)["a"].read())[3:9, 3:9].all()


def test_sprite_without_a_namespace_is_read(tmp_path):
    path = tmp_path / "sprite.svg"
    path.write_text(f'<svg><symbol id="box" viewBox="0 0 12 12">{SQUARE}</symbol></svg>')
    assert drawn(by_name(path)["box"].read())[3:9, 3:9].all()


@pytest.mark.parametrize("drawing", ['<use href="#a"/>', f"<g><a>{SQUARE}</a></g>"])
def test_drawing_with_visible_content_is_not_a_sprite(tmp_path, drawing):
    path = tmp_path / "drawing.svg"
    symbol = f'<symbol id="a" viewBox="0 0 12 12">{SQUARE}</symbol>'
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 12 12">{symbol}{drawing}</svg>')
    (file,) = iterate_images(str(path))
    assert file.name == str(path)


def test_folder_named_like_a_sprite_is_a_folder(tmp_path):
    (tmp_path / "all.svg").mkdir()
    (tmp_path / "all.svg" / "a.png").touch()
    assert [Path(name).name for name in by_name(tmp_path / "all.svg")] == ["a.png"]


def test_sprite_that_is_too_large_is_not_parsed(tmp_path):
    path = tmp_path / "sprite.svg"
    path.write_text(SPRITE)
    os.truncate(path, MAX_BYTES + 1)
    (file,) = iterate_images(str(path))
    with pytest.raises(BadSample, match=r"sprite\.svg: too many bytes"):
        file.read()


def test_entities_of_a_sprite_are_not_expanded(tmp_path):
    bomb = '<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    path = tmp_path / "bomb.svg"
    path.write_text(f'{bomb}<svg xmlns="http://www.w3.org/2000/svg"><symbol id="a">&b;</symbol></svg>')
    with pytest.raises(UserError, match="must not declare entities"):
        by_name(path)


def test_sprite_that_refers_to_other_files_fetches_nothing(tmp_path):
    path = tmp_path / "sprite.svg"
    image = '<image href="file:///etc/passwd"/>'
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg"><symbol id="a" viewBox="0 0 9 9">{image}</symbol></svg>')
    with pytest.raises(BadSample, match="contains another image file"):
        decode_image(by_name(path)["a"].read(), "a")


CHAIN = "".join(f'<g id="g{n}"><use href="#g{n + 1}"/></g>' for n in range(300))


@pytest.mark.parametrize(
    ("symbol", "message"),
    [
        (f'<symbol id="a" viewBox="0 0 9 9"><use href="#g0"/></symbol><defs>{CHAIN}</defs>', "more than 200 other"),
        (
            f'<symbol id="a" viewBox="0 0 9 9"><path d="{"M0 0h1" * 200_000}"/></symbol>',
            r"characters \(limit 1,048,576",
        ),
        (f'<symbol id="a" viewBox="0 0 9 9">{"<g>" * 5000}{"</g>" * 5000}</symbol>', "nested too deeply"),
    ],
)
def test_too_large_symbol_is_reported_and_the_next_is_drawn(tmp_path, symbol, message):
    path = tmp_path / "sprite.svg"
    other = f'<symbol id="b" viewBox="0 0 12 12">{SQUARE}</symbol>'
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg">{symbol}{other}</svg>')
    found = by_name(path)
    with pytest.raises(UserError, match=message):
        found["a"].read()
    assert drawn(found["b"].read())[3:9, 3:9].all()


@pytest.mark.parametrize("sides", ['viewBox="0 0 a b"', 'viewBox="0 0 1e9 1e9"', 'width="1.2.3" height="12"', ""])
@pytest.mark.parametrize("outer", ['width="12px" height="12"', 'viewBox="0,0,12,12"'])
def test_symbol_without_a_view_box_uses_the_sprites(tmp_path, sides, outer):
    path = tmp_path / "sprite.svg"
    symbol = f'<symbol id="a" {sides}>{SQUARE}</symbol>'
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {outer}>{symbol}</svg>')
    assert drawn(by_name(path)["a"].read())[3:9, 3:9].all()


@pytest.mark.parametrize("content", ["<svg><symbol", "symbol & more", '<svg><symbol id="a">&unknown;</symbol></svg>'])
def test_invalid_xml_sprite_raises_with_its_name(tmp_path, content):
    (tmp_path / "broken.svg").write_text(content)
    with pytest.raises(UserError, match=r"broken\.svg: corrupt SVG file"):
        by_name(tmp_path / "broken.svg")


# --- Fonts


def make_font(
    path: Path,
    glyphs: dict[str, int],
    flavor: str | None = None,
    ligature: str = "",
    squares: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """A font whose glyphs are squares on the base line: as many on each other as `squares` says, or else one."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    letters = sorted(set(ligature))
    names = [".notdef", *letters, *glyphs]
    drawings = {}
    for name in names:
        pen = TTGlyphPen(None)
        for _ in range(squares.get(name, 1) if name in glyphs else 0):
            pen.moveTo((100, 0))
            for point in ((100, 500), (600, 500), (600, 0)):
                pen.lineTo(point)
            pen.closePath()
        drawings[name] = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({**{ord(letter): letter for letter in letters}, **{c: n for n, c in glyphs.items()}})
    builder.setupGlyf(drawings)
    builder.setupHorizontalMetrics({name: (1000, 100 if name in glyphs else 0) for name in names})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Tiny", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    if ligature:
        first, *rest = ligature
        rule = f"feature liga {{ sub {first} {' '.join(rest)} by {next(iter(glyphs))}; }} liga;"
        builder.addOpenTypeFeatures(rule)
    builder.font.flavor = flavor
    builder.save(path)


@pytest.mark.parametrize("flavor", [None, "woff", "woff2"])
def test_named_glyphs_of_a_font_are_icons(tmp_path, flavor):
    path = tmp_path / f"tiny.{flavor or 'ttf'}"
    make_font(path, {"trash": 0xE001, "uniE002": 0xE002}, flavor)
    found = by_name(path)
    assert list(found) == ["trash", "u-e002"], "a glyph without a name is called by its code point"
    ink = drawn(found["trash"].read())
    assert ink[7:11, 2:7].all(), "upright, above the base line"
    assert not ink[:5].any()


def test_font_without_drawings_raises(tmp_path):
    path = tmp_path / "a.ttf"
    make_font(path, {"trash": 0xE001}, squares={"trash": 0})
    with pytest.raises(UserError, match=r"a\.ttf: has no glyph with a drawing and a name or code point"):
        by_name(path)
    make_font(path, {"blank": 0xE002, "trash": 0xE001}, squares={"blank": 0})
    assert list(by_name(path)) == ["trash"]


@pytest.mark.parametrize("spoiled", ["damaged", "large"])
def test_undrawable_glyph_does_not_affect_others(tmp_path, monkeypatch, spoiled):
    path = tmp_path / "a.ttf"
    make_font(path, {"trash": 0xE001, "broken": 0xE002})
    if spoiled == "damaged":
        from fontTools.ttLib import TTFont

        with TTFont(path) as font:
            start = font.reader.tables["glyf"].offset + font["loca"][2]
        data = bytearray(path.read_bytes())
        data[start : start + 2] = (500).to_bytes(2, "big")  # outlines
        path.write_bytes(data)
        message = "broken: corrupt glyph"
    else:
        make_font(path, {"trash": 0xE001, "broken": 0xE002}, squares={"broken": 40})
        monkeypatch.setattr("grr_coca_icons.sources.icon_fonts.MAX_SVG", 400)
        message = r"broken: has 720 characters \(limit 400\)"
    found = by_name(path)
    assert drawn(found["trash"].read()).any()
    with pytest.raises(UserError, match=message):
        found["broken"].read()


@pytest.mark.parametrize(
    ("glyphs", "ligature", "names"),
    [
        ({"uniE001": 0xE001, "uniE002": 0xE002}, "", ["u-e001", "u-e002"]),
        ({"uniE872": 0xE872}, "delete", ["delete"]),
        ({"uniE872": 0xE872}, "DE", ["u-e872"]),  # no word that a page writes
    ],
)
def test_unnamed_glyph_uses_its_ligature_or_code_point(tmp_path, glyphs, ligature, names):
    make_font(tmp_path / "a.ttf", glyphs, ligature=ligature)
    assert list(by_name(tmp_path / "a.ttf")) == names


@pytest.mark.parametrize("content", [b"", b"no font", b"wOF2" + b"\xff" * 60, b"\0\1\0\0" + b"\xff" * 60], ids=range(4))
def test_corrupt_font_reports_one_line(tmp_path, content):
    path = tmp_path / "broken.woff2"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.woff2: ") as caught:
        by_name(path)
    assert "\n" not in str(caught.value)


def test_oversized_font_is_not_decompressed(tmp_path):
    path = tmp_path / "bomb.woff2"
    make_font(path, {"trash": 0xE001}, "woff2")
    data = bytearray(path.read_bytes())
    data[16:20] = (2**32 - 1).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"too large for an icon font .*bytes unpacked, limit 134,217,728"):
        by_name(path)


# --- All of them


def test_icons_are_pairs_for_training(json_file):
    source = open_source(str(json_file))
    assert [source.caption(index) for index in range(len(source))] == ["box", "bar", "bar down", "pole"]
    assert source[0].captions == ("box", "square", "quad")
    assert source.container(0) == str(json_file)


def test_icons_without_drawing_or_words_are_bad_pairs(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"prefix": "x", "icons": {"none": {}, "_": {"body": SQUARE}, "box": {"body": SQUARE}}}))
    source = open_source(str(path))
    for index, (message, cause) in enumerate(
        [
            (r"none: drawing \('body'\) is missing", Cause.BROKEN_IMAGE),
            ("_: a name without letters or digits", Cause.EMPTY_CAPTION),
        ]
    ):
        with pytest.raises(BadSample, match=rf"x\.json: {message}") as caught:
            source[index]
        assert caught.value.cause is cause
    assert source[2].caption == "box"


def test_corrupt_icon_pack_raises_and_is_rebuilt_if_deleted(json_file):
    pack = open_icons(str(json_file)).file
    whole = pack.read_bytes()
    for corrupt in (b"", whole[:-1], whole.replace(b'"offset"', b'"offsat"'), whole[:-8] + bytes(8)):
        pack.write_bytes(corrupt)
        with pytest.raises(UserError, match=r"tiny\.icons: corrupt; delete this file, and run the command again"):
            open_icons(str(json_file))
    pack.unlink()
    assert open_icons(str(json_file)).file.read_bytes() == whole


def test_resumed_run_detects_changed_icons(json_file):
    before = source_digest(open_source(str(json_file)))
    assert source_digest(open_source(str(json_file))) == before
    json_file.write_text(json_file.read_text().replace("M2 2", "M3 3").replace("square", "box"))
    assert len(open_source(str(json_file))) > 0
    assert source_digest(open_source(str(json_file))) != before


def test_icons_are_read_again_if_the_cache_was_emptied(json_file):
    packed = open_icons(str(json_file))
    file = by_name(json_file)["box"]
    content = file.read()
    packed.file.unlink()
    assert file.read() == content


def test_unwritable_cache_reports_one_line(json_file, monkeypatch, tmp_path):
    (tmp_path / "full").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))
    with pytest.raises(UserError, match=r"cannot be written .* set XDG_CACHE_HOME"):
        by_name(json_file)


@pytest.mark.parametrize(
    ("name", "words"),
    [("Trash2", "trash 2"), ("trash-2", "trash 2"), ("ArrowUpAZ", "arrow up az"), ("HTMLFile", "html file"), ("_", "")],
)
def test_words_of_a_name(name, words):
    assert words_of_name(name) == words
