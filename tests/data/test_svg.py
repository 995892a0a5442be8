"""SVG files are images like others."""

import importlib.util

import pytest
from PIL import Image

from grr_coca.data import images as svg_module
from grr_coca.data.images import SVG_SIDE as SIDE
from grr_coca.data.images import decode_image, is_svg, open_header
from grr_coca.data.sources.base import BadSample

pytest.importorskip("resvg_py")

SQUARE = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><path d="M0 0h4v8H0z"/></svg>'
OBLONG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 4"><path fill="red" d="M0 0h8v4H0z"/></svg>'


def test_an_svg_file_is_drawn_black_on_white():
    image = decode_image(SQUARE, "a.svg")
    assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")
    assert (image.getpixel((10, 100)), image.getpixel((200, 100))) == ((0, 0, 0), (255, 255, 255))
    assert open_header(SQUARE, "a.svg").format == "SVG"


def test_an_oblong_one_is_shown_whole_in_the_middle_of_a_square():
    image = decode_image(OBLONG, "a.svg")
    assert image.size == (SIDE, SIDE)
    assert [image.getpixel((SIDE // 2, y)) for y in (10, SIDE // 2, SIDE - 10)] == [
        (255, 255, 255),
        (255, 0, 0),
        (255, 255, 255),
    ]


@pytest.mark.parametrize(
    "head", [b"", b"\xef\xbb\xbf", b"\n ", b'<?xml version="1.0"?>\n', b"<!-- by hand -->", b"<!DOCTYPE svg>"]
)
def test_svg_is_told_by_its_content(head):
    assert is_svg(head + SQUARE)


@pytest.mark.parametrize("data", [b"", b"<html><svg/></html>", b"\x89PNG<svg", b"<?xml version='1.0'?><rss/>"])
def test_other_content_is_not_svg(data):
    assert not is_svg(data)


def filtered(primitive):
    """The square, seen through a filter."""
    shown = SQUARE.replace(b"<path", f"<filter id='f'>{primitive}</filter><path filter='url(#f)'".encode())
    return shown


def test_what_many_drawings_have_is_drawn():
    assert decode_image(SQUARE.replace(b"<path", b"<g>" * 98 + b"</g>" * 98 + b"<path"), "a.svg").size == (SIDE, SIDE)
    assert decode_image(filtered("<feMorphology radius='1'/><feGaussianBlur stdDeviation='2'/>"), "a.svg").size


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (SQUARE[:60], r"a\.svg: an SVG file that cannot be drawn"),
        (SQUARE.replace(b"M0", b"\xff"), r"a\.svg: an SVG file that cannot be drawn"),
        (SQUARE.replace(b"<path", b'<image href="/etc/hostname.png"/><path'), "contains another image"),
        (SQUARE.replace(b"<path", b"<image\n/><path"), "contains another image"),
        (SQUARE.replace(b"<path", b'<feImage href="/etc/hostname.png"/><path'), "contains another image"),
        (
            SQUARE.replace(b"<path", b"<g>" * 100 + b"</g>" * 100 + b"<path"),
            "more than 100 nested elements",
        ),
        (
            filtered("<feTurbulence baseFrequency='0.1' numOctaves='2000000000'/>"),
            "such as feTurbulence with 2000000000, would",
        ),
        (filtered("<feConvolveMatrix order='3 200'/>"), "such as feConvolveMatrix with 3 200, would"),
        (filtered("<feMorphology radius='nan'/>"), "such as feMorphology with nan, would"),
        (filtered("<feMorphology radius='1'/>" * 33), "such as feMorphology with 1, would"),
        (filtered("<feMorphology radius='nothing'/>"), "cannot be drawn"),
        (SQUARE.replace(b"<path", '<s·é:image href="/etc/hostname.png"/><path'.encode()), "contains another image"),
    ],
)
def test_what_cannot_be_drawn_is_named(data, says):
    with pytest.raises(BadSample, match=says):
        decode_image(data, "a.svg")


def test_no_entity_hides_that_another_file_is_read(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(path)
    for first in ("&#60;", "&#x3c;", "&lt;"):
        entity = f"<!DOCTYPE svg [<!ENTITY e \"{first}image width='8' height='8' href='{path}'/>\">]>".encode()
        drawn = decode_image(entity + SQUARE.replace(b"<path", b"&e;<path"), "a.svg")
        assert drawn.tobytes() == decode_image(SQUARE, "a.svg").tobytes()


def test_without_resvg_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setattr(svg_module, "find_spec", lambda _: None)
    with pytest.raises(BadSample, match=r"a\.svg: an SVG file, which needs resvg-py; pip install 'grr-coca\[icons\]'"):
        decode_image(SQUARE, "a.svg")
    assert importlib.util.find_spec("resvg_py") is not None
