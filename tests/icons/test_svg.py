"""SVG files are images like others. The programs that draw them are tested in `test_isolated`."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import svg_grammar
from PIL import Image

from grr_coca.data.images import VECTOR_SIDE as SIDE
from grr_coca.data.isolated import decode_image, image_header
from grr_coca.data.preprocess import Framing, Preprocess
from grr_coca.data.sources.base import BadSample, Cause
from grr_coca_icons import svg, svg_drawing
from grr_coca_icons.svg import is_svg, render_svg

resvg_py = pytest.importorskip("resvg_py")

SQUARE = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><path d="M0 0h4v8H0z"/></svg>'
OBLONG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 4"><path fill="red" d="M0 0h8v4H0z"/></svg>'


def test_svg_file_is_drawn_black_on_white():
    image = decode_image(SQUARE, "a.svg")
    assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")
    assert (image.getpixel((10, 100)), image.getpixel((200, 100))) == ((0, 0, 0), (255, 255, 255))
    assert image_header(SQUARE, "a.svg") == ((SIDE, SIDE), "SVG")


def test_rendering_subprocess_supports_its_formats():
    code = f"from grr_coca_icons.svg import render_svg; print(render_svg({SQUARE.decode()!r}, 32).size)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(32, 32)\n"


def test_small_drawing_has_the_requested_size():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><circle cx="11.3" cy="12" r="2.6"/></svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=64, height=64, dpi=96, skip_system_fonts=True)
    expected = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    assert render_svg(svg, 64).tobytes() == expected.tobytes()


def test_oblong_drawing_is_centred_in_a_square():
    image = decode_image(OBLONG, "a.svg")
    assert image.size == (SIDE, SIDE)
    assert [image.getpixel((SIDE // 2, y)) for y in (10, SIDE // 2, SIDE - 10)] == [
        (255, 255, 255),
        (255, 0, 0),
        (255, 255, 255),
    ]


SMALL = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="M2 3h9v4H2z"/></svg>'


def test_svg_is_rendered_at_twice_the_model_size():
    for_model = Preprocess(64)
    assert for_model.decode(SQUARE, "a.svg").size == (128, 128)
    assert for_model.decode(SQUARE, "a.svg", for_display=True).size == (SIDE, SIDE)
    assert Preprocess(224).decode(SQUARE, "a.svg").size == (SIDE, SIDE), "never larger"


def test_drawing_that_framing_will_enlarge_is_drawn_large():
    assert Preprocess(64).decode(SMALL, "a.svg").size == (SIDE, SIDE)
    blank = SMALL.replace(b"<path", b"<path fill='none'")
    assert Preprocess(64).decode(blank, "a.svg").size == (128, 128)


def test_model_sees_a_drawing_of_half_the_size_nearly_alike():
    preprocess = Preprocess(64, framing=Framing())
    for drawing in (SQUARE, OBLONG, SMALL):
        small, whole = (
            preprocess(preprocess.decode(drawing, "a.svg", for_display=f)).astype(int) for f in (False, True)
        )
        assert abs(small - whole).mean() < 2


@pytest.mark.parametrize(
    "head", [b"", b"\xef\xbb\xbf", b"\n ", b'<?xml version="1.0"?>\n', b"<!-- by hand -->", b"<!DOCTYPE svg>"]
)
def test_svg_is_detected_by_its_content(head):
    assert is_svg(head + SQUARE)


@pytest.mark.parametrize("data", [b"", b"<html><svg/></html>", b"\x89PNG<svg", b"<?xml version='1.0'?><rss/>"])
def test_other_content_is_not_svg(data):
    assert not is_svg(data)


def filtered(primitive):
    """The square, seen through a filter."""
    shown = SQUARE.replace(b"<path", f"<filter id='f'>{primitive}</filter><path filter='url(#f)'".encode())
    return shown


def test_common_svg_features_are_drawn():
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
        (SQUARE.replace(b"<path", '<s·é:image href="/etc/hostname.png"/><path'.encode()), "contains another image"),
    ],
)
def test_undrawable_files_are_named(data, says):
    with pytest.raises(BadSample, match=says):
        decode_image(data, "a.svg")


def test_entities_do_not_hide_references_to_other_files(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(path)
    for first in ("&#60;", "&#x3c;", "&lt;"):
        entity = f"<!DOCTYPE svg [<!ENTITY e \"{first}image width='8' height='8' href='{path}'/>\">]>".encode()
        drawn = decode_image(entity + SQUARE.replace(b"<path", b"&e;<path"), "a.svg")
        assert drawn.tobytes() == decode_image(SQUARE, "a.svg").tobytes()


def test_error_without_resvg_names_the_install_command(monkeypatch):
    monkeypatch.setattr(svg_drawing, "resvg_py", None)
    with pytest.raises(BadSample, match=r"a\.svg: an SVG file, which needs resvg-py; run: .* -m pip install resvg-py$"):
        svg_drawing.render(SQUARE, "a.svg", 8)


# --- Drawings that attack

PATTERN = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 99 99"><pattern id="p" width="5" height="99999999999">'
    b'<rect width="3" height="3"/></pattern><path d="M0 0L9 90V0Z" fill="url(#p)"/></svg>'
)
PANIC = filtered('<feTurbulence baseFrequency="1e308"/>')
ENDLESS = filtered(
    "<s:feTurbulence xmlns:s='http://www.w3.org/2000/svg' baseFrequency='.1' s:numOctaves='2000000000'/>"
)
NESTED = SQUARE.replace(b"<path", b"<g>" * 100_000 + b"</g>" * 100_000 + b"<path")


@pytest.fixture
def brief(monkeypatch):
    """Drawings may take half a second of processor time."""
    monkeypatch.setattr(svg.SvgFormat, "cpu_seconds", 0.5)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (PATTERN, r"crashes its decoder \(SIGABRT\)"),
        (NESTED, r"crashes its decoder \(SIGSEGV\)"),
        (PANIC, "cannot be drawn"),
        (ENDLESS, r"takes more than 0\.5 s of processor time"),
    ],
    ids=["abort", "nested", "panic", "endless"],
)
def test_malicious_drawing_only_raises(brief, data, says):
    with pytest.raises(BadSample, match=rf"a\.svg: .*{says}") as refused:
        decode_image(data, "a.svg")
    assert refused.value.cause is (Cause.TOO_LARGE if "0" in says else Cause.BROKEN_IMAGE)
    assert decode_image(SQUARE, "b.svg").size == (SIDE, SIDE)


def test_concurrent_drawings_do_not_mix():
    colours = [f"#{number:02x}{255 - number:02x}00" for number in range(0, 256, 4)]
    drawings = [OBLONG.replace(b"red", colour.encode()) for colour in colours]
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda data: decode_image(data, "a.svg").getpixel((SIDE // 2, SIDE // 2)), drawings))
    assert ["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in drawn] == colours


SCRIPT = f"""
from grr_coca.data.isolated import decode_image
print(decode_image({SQUARE!r}, "a.svg").getpixel((10, 100)))
"""


def test_files_of_the_current_folder_are_not_imported(tmp_path):
    for name in ("resvg_py", "struct", "faulthandler", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    code = f"import sys; sys.path.remove(''); {SCRIPT.strip().replace(chr(10), '; ')}"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (process.stdout, process.stderr) == ("(0, 0, 0)\n", "")


# --- Drawings by grammar


def draw_all(seeds):
    """How many drawings of these seeds are drawn, and how many are refused. Nothing else may happen to them."""
    counts = {"drawn": 0, "refused": 0}
    for seed in seeds:
        refused = None
        try:
            decode_image(svg_grammar.drawing(seed), f"{seed}.svg")
        except BadSample as error:
            refused = error
        counts["refused" if refused else "drawn"] += 1
        assert refused is None or (
            refused.cause in (Cause.BROKEN_IMAGE, Cause.TOO_LARGE) and len(str(refused)) < 1200
        ), f"seed {seed}"
    return counts


@pytest.mark.ci
def test_generated_drawings_never_crash(brief):
    counts = draw_all(range(150))
    assert min(counts.values()) > 10, counts


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_generated_drawings_never_crash(brief):
    counts = draw_all(range(1000, 21_000))
    assert min(counts.values()) > 1000, counts
