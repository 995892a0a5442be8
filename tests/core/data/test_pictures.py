"""The matrix of formats in the docs: each cell is a file that a real program wrote (see pictures/README.md)."""

import io
import re
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from support import encode_image

from grr_coca.data.image_forms import to_rgb
from grr_coca.data.images import decode_in_process, has_more_frames, open_header
from grr_coca.data.isolated import decode_image
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.base import BadSample, Cause

PICTURES = Path(__file__).parent / "pictures"
COLOURS = np.array([[(200, 30, 40), (40, 160, 60)], [(40, 60, 180), (240, 240, 220)]])
"""Red and green above, blue and white below."""
TURNED = np.rot90(COLOURS, -1)
"""A quarter turn clockwise: blue and red above."""
INKS = np.array([[(181, 71, 63), (43, 114, 102)], [(63, 78, 123), (233, 231, 224)]])
"""The colours of the inks of the CMYK profile, as ImageMagick converts them."""
GREY = np.array([[67, 127], [64, 239]])[..., None].repeat(3, axis=-1)
OVER_WHITE = (COLOURS + 255) / 2
LUMA = np.array([[82, 113], [68, 238]])[..., None].repeat(3, axis=-1)
SPREAD = np.array([[4, 92], [0, 255]])[..., None].repeat(3, axis=-1)
"""From black to white, as floating-point values are read."""
RED_IS_CLEAR = np.where(COLOURS[0, 0] == COLOURS, 255, COLOURS)

_BY_COLOURS = (
    (COLOURS,
     "libjpeg.jpg imagemagick-progressive.jpg imagemagick-cmyk.jpg darktable-display-p3.jpg "
     "darktable-adobe-rgb.jpg imagemagick-16bit.png imagemagick-palette.png ffmpeg-animated.png "
     "darktable-display-p3.png libwebp.webp libwebp-animated.webp libwebp-adobe-rgb.webp "
     "imagemagick-animated.gif imagemagick-16bit.tif imagemagick-16bit-planar.tif imagemagick-cmyk.tif "
     "libtiff-pages.tif libavif.avif libavif-10bit.avif libavif-12bit.avif libavif-adobe-rgb.avif "
     "libavif-animated.avif libheif.avif ffmpeg.avif libheif.heic libheif-10bit.heic libheif-adobe-rgb.heic "
     "imagemagick.bmp imagemagick-palette.bmp imagemagick-16bit.ppm imagemagick.jp2 imagemagick-16bit.jp2"),
    (LUMA, "libjpeg-grey.jpg libavif-grey.avif libheif-grey.heic"),
    (INKS, "imagemagick-cmyk-profile.jpg imagemagick-cmyk-profile.tif"),
    (TURNED, "exiftool-turned.jpg exiftool-turned.png exiftool-turned.webp imagemagick-turned.tif libheif-turned.heic"),
    (GREY,
     "imagemagick-16bit-grey.png imagemagick-grey.tif imagemagick-16bit-grey.tif imagemagick-grey.ppm "
     "imagemagick-grey.jp2"),
    (OVER_WHITE, "imagemagick-alpha.png imagemagick-alpha.webp libavif-alpha.avif libheif-alpha.heic"),
    (RED_IS_CLEAR, "imagemagick-alpha.gif"),
    (SPREAD, "imagemagick-32bit-grey.tif"),
    (np.rot90(COLOURS), "libavif-turned.avif"),
)  # fmt: skip
FILES = {name: colours for colours, names in _BY_COLOURS for name in names.split()}
SEVERAL = {name for name in FILES if "animated" in name or "pages" in name}


def colours_of(image: Image.Image) -> np.ndarray:
    """The pixel in the middle of each quarter."""
    pixels = np.asarray(image).astype(int)
    height, width = pixels.shape[:2]
    return pixels[height // 4 :: height // 2, width // 4 :: width // 2]


def content(name: str) -> bytes:
    if name.endswith(".heic"):
        pytest.importorskip("pillow_heif", reason="HEIC needs the extra [photos]")
    return (PICTURES / name).read_bytes()


MATRIX = Path(__file__).parents[3] / "docs" / "photos.md"
SUFFIXES = {
    "JPEG": ("jpg",),
    "PNG": ("png",),
    "WebP": ("webp",),
    "TIFF": ("tif",),
    "AVIF": ("avif",),
    "HEIC, HEIF": ("heic",),
    "GIF": ("gif",),
    "JPEG 2000, PPM": ("jp2", "ppm"),
    "BMP": ("bmp",),
}
IN_NAMES = {
    "grey": "grey",
    "CMYK": "cmyk",
    "palette": "palette",
    "transparent": "alpha",
    "ICC": "display-p3|adobe-rgb|profile",
    "16": "16bit",
    "32": "32bit",
    "10": "10bit",
    "12": "12bit",
    "EXIF": "turned",
    "the file's own": "turned",
    "first": "animated|pages",
}


def test_matrix_in_the_docs_matches_these_files():
    """Each word of a row has a file of that format, and each file has its word."""
    rows = re.findall(r"^\| ([A-Z].+?) \| (.*) \|$", MATRIX.read_text(encoding="utf-8").split("\n\n")[2], re.MULTILINE)
    assert {name for name, _ in rows} == {*SUFFIXES, "SVG"}
    for name, row in rows[:-1]:
        files = [file for file in FILES if file.endswith(SUFFIXES[name])]
        shown = {word for word, part in IN_NAMES.items() if any(re.search(part, file) for file in files)}
        documented = set(re.findall("|".join(rf"\b{word}\b" for word in IN_NAMES), row))
        if name == "GIF":
            shown.add("palette")  # as all of them
        both = {"EXIF", "the file's own"}
        assert documented - both == shown - both, name
        assert bool(documented & both) == bool(shown & both), name


def test_matrix_has_every_file():
    assert {path.name for path in PICTURES.iterdir()} - {"README.md"} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_real_files_have_correct_colours_and_orientation(name):
    image = decode_image(content(name), name, to_srgb=True)
    assert has_more_frames(Preprocess(16).square(image)) is (name in SEVERAL)
    assert image.mode == "RGB"
    assert image.size == ((48, 32) if "turned" not in name else (32, 48))
    assert np.abs(colours_of(image) - FILES[name]).max() <= 5


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".avif", ".heic"))])
def test_truncated_or_corrupt_file_is_named(name):
    whole = content(name)
    for data in (whole[: len(whole) // 2], whole[:40], whole[:32] + bytes(len(whole) - 32)):
        with pytest.raises(BadSample, match=f"^{re.escape(name)}: "):
            decode_image(data, name)
    with suppress(BadSample):  # some files have nothing there that decoding needs
        decode_image(whole[:-40] + bytes(40), name)


@pytest.mark.parametrize("name", ["libavif.avif", "libheif.heic"])
def test_rejects_a_header_with_too_many_pixels(name):
    data = bytearray(content(name))
    place = data.index(b"ispe") + 8
    data[place : place + 8] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(BadSample) as caught:
        decode_image(bytes(data), name)
    assert caught.value.cause in (Cause.TOO_LARGE, Cause.BROKEN_IMAGE, Cause.NOT_AN_IMAGE)


def test_heic_without_the_extra_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(
        BadSample, match=r"^a\.heic: a HEIC file, which needs pillow-heif; run: .* -m pip install pillow-heif$"
    ) as caught:
        decode_in_process((PICTURES / "libheif.heic").read_bytes(), "a.heic")
    assert caught.value.cause is Cause.NOT_INSTALLED


# --- Colour profiles


with Image.open(PICTURES / "darktable-display-p3.jpg") as _picture:
    P3 = _picture.info["icc_profile"]


def test_display_p3_is_converted_by_its_matrix():
    """Against the matrices of the two spaces, from their primaries and the white of D65."""

    def to_xyz(red, green, blue):
        columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (red, green, blue)]).T
        white = np.array([0.3127 / 0.329, 1, (1 - 0.3127 - 0.329) / 0.329])
        return columns * np.linalg.solve(columns, white)

    blue = (0.15, 0.06)
    srgb, p3 = to_xyz((0.64, 0.33), (0.3, 0.6), blue), to_xyz((0.68, 0.32), (0.265, 0.69), blue)
    stored = np.array([(180, 90, 60), (60, 150, 90), (120, 110, 200), (128, 128, 128)])
    share = stored / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    mixed = (linear @ np.linalg.solve(srgb, p3).T).clip(0, 1)
    expected = 255 * np.where(mixed <= 0.0031308, 12.92 * mixed, 1.055 * mixed ** (1 / 2.4) - 0.055)
    image = Image.fromarray(stored[None].astype(np.uint8))
    decoded = decode_image(encode_image(image, "png", icc_profile=P3), "a.png", to_srgb=True)
    assert np.abs(np.asarray(decoded)[0] - expected).max() <= 1.5
    assert np.abs(expected - stored).max() > 10


def test_training_and_imported_models_use_stored_pixels():
    stored = np.full((8, 8, 3), (180, 90, 60), np.uint8)
    data = encode_image(Image.fromarray(stored), "png", icc_profile=P3)
    for preprocess, to_srgb in ((Preprocess(8), False), (Preprocess(8, opening="as_stored"), True)):
        np.testing.assert_array_equal(preprocess(preprocess.decode(data, "a.png", to_srgb=to_srgb)), stored)
    assert np.abs(Preprocess(8)(Preprocess(8).decode(data, "a.png")).astype(int) - stored).max() > 10


def test_conversion_after_scaling_has_similar_colours():
    levels = np.linspace(0, 1, 200)
    waves = np.stack([*np.meshgrid(60 + 120 * levels, 60 + 120 * levels[::-1]), np.full((200, 200), 90)], axis=-1)
    data = encode_image(Image.fromarray(waves.astype(np.uint8)), "png", icc_profile=P3)
    preprocess = Preprocess(16)
    later = preprocess.square(preprocess.decode(data, "a.png"))
    before = preprocess.square(decode_image(data, "a.png", to_srgb=True))
    assert np.abs(np.asarray(later).astype(int) - np.asarray(before)).max() <= 4  # at the edge of sRGB
    assert np.abs(np.asarray(later).astype(int) - preprocess(decode_image(data, "a.png"))).max() > 10
    np.testing.assert_array_equal(np.asarray(preprocess.square(later)), np.asarray(later), "it is not converted twice")


def test_pillow_image_with_a_profile_is_converted():
    data = encode_image(Image.new("RGB", (8, 8), (180, 90, 60)), "png", icc_profile=P3)
    with Image.open(io.BytesIO(data)) as image:
        given = Preprocess(8)(to_rgb(image, "image"))
    np.testing.assert_array_equal(given, Preprocess(8)(Preprocess(8).decode(data, "a.png")))


def test_srgb_itself_changes_no_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode_image(Image.fromarray(pixels), "png", icc_profile=profile)
    np.testing.assert_array_equal(np.asarray(decode_image(data, "a.png", to_srgb=True)), pixels)


def test_image_is_not_converted_twice():
    data = encode_image(Image.new("RGB", (4, 4), (180, 90, 60)), "png", icc_profile=P3)
    once = decode_image(data, "a.png", to_srgb=True)
    again = decode_image(encode_image(once, "png"), "a.png", to_srgb=True)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(once))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_stays_next_to_a_profile(mode):
    image = Image.new("RGBA", (4, 4), (180, 90, 60, 255))
    image.paste((0, 0, 0, 0), (0, 0, 2, 4))
    data = encode_image(image.convert(mode) if mode != "P" else image.quantize(4), "png", icc_profile=P3)
    pixels = np.asarray(decode_image(data, "a.png", to_srgb=True)).astype(int)
    np.testing.assert_array_equal(pixels[0, 0], [255, 255, 255])
    assert np.abs(pixels[0, 3] - ([194, 86, 52] if mode != "LA" else pixels[0, 3, 0])).max() <= 4


@pytest.mark.parametrize("profile", [b"no profile", P3[:200], P3[:-2000], bytes(1000)], ids=len)
def test_corrupt_profile_is_ignored(profile):
    data = encode_image(Image.new("RGB", (4, 4), (180, 90, 60)), "png", icc_profile=profile)
    assert decode_image(data, "a.png", to_srgb=True).getpixel((0, 0)) == (180, 90, 60)


def test_profile_of_other_channels_is_ignored():
    data = encode_image(Image.new("L", (4, 4), 90), "jpeg", icc_profile=P3)
    assert decode_image(data, "a.jpg", to_srgb=True).getpixel((0, 0)) == (90, 90, 90)
    deep = encode_image(Image.fromarray(np.full((4, 4), 90 * 257, np.uint16)), "png", icc_profile=P3)
    assert decode_image(deep, "a.png", to_srgb=True).getpixel((0, 0)) == (90, 90, 90)


def test_corrupt_second_frame_does_not_spoil_the_first():
    buffer = io.BytesIO()
    image = Image.new("RGB", (8, 8), "red")
    image.save(buffer, "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")], duration=50)
    data = buffer.getvalue()
    second = data.rindex(b"\x21\xf9\x04")
    damaged = data[:second] + b"\x21\xf9\x01\x00\x00" + data[second + 8 :]  # the block that tells its duration
    decoded = decode_image(damaged, "a.gif")
    assert decoded.tobytes() == decode_image(data, "a.gif").tobytes()
    assert not has_more_frames(decoded)
    assert has_more_frames(decode_image(data, "a.gif"))


def test_embedded_preview_is_not_a_second_frame():
    """A JPEG of a telephone holds a preview, or what a bright screen adds to it, behind its own picture."""
    buffer = io.BytesIO()
    image = Image.new("RGB", (8, 8), "red")
    image.save(buffer, "MPO", save_all=True, append_images=[image.resize((4, 4))])
    assert open_header(buffer.getvalue(), "a.jpg").n_frames == 2
    assert not has_more_frames(decode_image(buffer.getvalue(), "a.jpg"))
