"""Whatever a file holds becomes an RGB image, or an error that names the file."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from file_attack import outcome
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support import encode_image, real_pairs

from grr_coca.common.errors import UserError
from grr_coca.data.image_caps import MAX_PIXELS
from grr_coca.data.images import decode_in_process, open_rgb
from grr_coca.data.isolated import decode_image, image_header
from grr_coca.data.sources.base import BadSample, Cause
from grr_coca.data.walk import is_image_name

NAME = "photos/cat.jpg"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", True),
        ("x/.cache.d/a.b.JPEG", True),
        ("._a.jpg", False),
        ("x/._a.jpg", False),
        (".jpg", False),
        ("jpg", False),
        ("x.jpg/a", False),
        ("a.jpg.txt", False),
        ("a", False),
    ],
)
def test_file_is_an_image_by_its_suffix_unless_hidden(name, expected):
    assert is_image_name(name) is expected


def pictogram() -> Image.Image:
    return decode_image(real_pairs(1)[0].image, "pictogram")


def decode(image: Image.Image, kind: str = "png", **options: object) -> np.ndarray:
    decoded = decode_image(encode_image(image, kind, **options), NAME)
    assert decoded.mode == "RGB"
    return np.asarray(decoded)


def decode_array(values: np.ndarray, kind: str = "png") -> np.ndarray:
    return decode(Image.fromarray(values), kind)


def rgb_or_error_with_the_name(data: bytes) -> Image.Image | None:
    """The image; none where the file was refused in the way that is promised."""
    try:
        image = decode_image(data, NAME)
    except UserError as error:
        message = str(error)
    else:
        assert image.mode == "RGB"
        return image
    assert message.startswith(f"{NAME}: ")
    return None


def png_header_of(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


REAL_FILES = {kind: encode_image(pictogram(), kind) for kind in ("webp", "png", "jpeg", "gif", "bmp", "tiff")}


# --- What cannot be read


@pytest.mark.parametrize(
    ("data", "cause", "message"),
    [
        (b"", Cause.EMPTY_FILE, "not an image"),
        (b"a photo of a cat", Cause.NOT_AN_IMAGE, "not an image"),
        (b"<!doctype html><html><body>404 Not Found</body></html>", Cause.NOT_AN_IMAGE, "not an image"),
        (bytes(5000), Cause.NOT_AN_IMAGE, "not an image"),
        *((data[: len(data) // 2], Cause.BROKEN_IMAGE, "broken or truncated image") for data in REAL_FILES.values()),
        *(
            (png_header_of(n, n), Cause.TOO_LARGE, rf"too many pixels: {n * n:,} \(limit {MAX_PIXELS:,}\)")
            for n in (50_000, 12_000)
        ),
    ],
    ids=["nothing", "text", "HTML", "zeros", *REAL_FILES, "far too large", "too large"],
)
def test_unreadable_image_names_file_and_cause(data, cause, message):
    for read in (decode_image, image_header) if cause is Cause.TOO_LARGE else (decode_image,):
        with pytest.raises(BadSample, match=f"^{NAME}: {message}") as caught:
            read(data, NAME)
        assert caught.value.cause is cause


@given(st.sampled_from(sorted(REAL_FILES)), st.data())
def test_mutated_file_yields_image_or_named_error(kind, draw):
    data = bytearray(REAL_FILES[kind])
    for position in draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
        data[position] = draw.draw(st.integers(0, 255))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("grr_coca.data.images.MAX_PIXELS", 10_000)  # a damaged size could be of seconds
        rgb_or_error_with_the_name(bytes(data))


@pytest.mark.ci
def test_mutated_images_at_most_fail():
    counts = Counter(outcome("pictures", number) for number in range(400))
    assert counts.keys() == {"decoded", "refused"}
    assert min(counts.values()) > 50


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_metadata_that_is_garbage_does_not_crash(kind):
    data = encode_image(pictogram(), kind, exif=b"Exif\0\0garbage that is no TIFF header")
    image = rgb_or_error_with_the_name(data)
    assert image is None or image.size == (64, 64)


# --- Many pixels


def test_image_of_the_largest_size_is_read():
    side = int(MAX_PIXELS**0.5)
    assert decode_image(encode_image(Image.new("1", (side, 1))), NAME).size == (side, 1)


# --- Modes and depths
# Files of real programs in each mode, turned and animated, are in `test_pictures`.


def test_rgb_image_keeps_its_pixels():
    image = pictogram()
    np.testing.assert_array_equal(decode(image), np.asarray(image))


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (0, 128), (127, 127, 127)),
    ],
)
def test_transparency_is_composited_over_white(mode, pixel, expected):
    pixels = decode(Image.new(mode, (4, 4), pixel))
    assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_transparent_palette_colour_becomes_white(kind):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.paste(1, (2, 0, 4, 2))
    pixels = decode(image, kind, transparency=0)
    np.testing.assert_array_equal(pixels[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(pixels[0, 3], [200, 0, 0])


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (np.array([[True, False]]), "png", [255, 0]),
        (np.array([[0, 257, 12_850, 32_896, 65_535]], np.uint16), "png", [0, 1, 50, 128, 255]),
        (np.array([[0, 65_535, 2_000_000_000]], np.int32), "tiff", [0, 255, 255]),
        (np.array([[-1.5, 0.0, 1.5]], np.float32), "tiff", [0, 128, 255]),
        *((np.full((1, 3), value, np.float32), "tiff", [0, 0, 0]) for value in (0.0, 3.5, np.nan)),
    ],
    ids=["black and white", "16 bits", "32 bits", "floats", "zero", "constant", "not a number"],
)
def test_grey_of_any_depth_spans_black_to_white(values, kind, expected):
    for channel in range(3):
        np.testing.assert_array_equal(decode_array(values, kind)[0, :, channel], expected)


def test_transparent_16_bit_grey_becomes_white():
    values = np.array([[0, 1, 300]], np.uint16)
    data = encode_image(Image.fromarray(values))
    end = data.index(b"IDAT") - 4  # `tRNS`, the transparent grey, lies before the pixels
    chunk = b"tRNS" + struct.pack(">H", 0)
    data = data[:end] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[end:]
    np.testing.assert_array_equal(np.asarray(decode_image(data, NAME))[0, :, 0], [255, 0, 1])
    np.testing.assert_array_equal(np.asarray(decode_image(data, NAME, "as_stored"))[0, :, 0], [0, 0, 1])


def test_infinite_grey_leaves_the_finite_pixels_distinct():
    pixels = decode_array(np.array([[np.inf, 0.0], [1.0, 2.0]], np.float32), "tiff")[..., 0]
    assert pixels[0, 1] < pixels[1, 0] < pixels[1, 1]


# --- Size, frames, orientation


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_single_pixel_is_an_image(kind):
    assert decode(Image.new("RGB", (1, 1), "red"), kind).shape == (1, 1, 3)


def tiff_block(*tags: tuple[int, int, bytes]) -> bytes:
    """EXIF data of tags with one value each: tag, type and the value in four bytes."""
    entries = b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in tags)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("odd", [(0x010E, 11, struct.pack("<f", 1.5)), (0x011A, 2, b"72\0\0")])
def test_tag_of_a_wrong_type_does_not_prevent_decoding(kind, odd):
    """A camera wrote its name as a number, an editor the resolution as text."""
    image = Image.new("RGB", (30, 20))
    data = encode_image(image, kind, exif=tiff_block(odd, (0x0112, 3, struct.pack("<HH", 6, 0))))
    assert decode_image(data, NAME).size == (20, 30)
    assert open_rgb(Image.open(io.BytesIO(data))).size == (20, 30)


def test_missing_palette_names_the_file():
    data = encode_image(Image.new("P", (9, 9)), "png")
    start = data.index(b"PLTE") - 4
    length = int.from_bytes(data[start : start + 4], "big")
    with pytest.raises(BadSample, match=r"^a\.png: broken or truncated image \(missing data\)"):
        decode_image(data[:start] + data[start + 12 + length :], "a.png")


def test_invalid_pixel_offset_names_the_file():
    """So is a damaged TIFF: Pillow raises a TypeError."""
    file = bytearray(encode_image(pictogram(), "tiff"))
    entry = file.index(struct.pack("<H", 273), int.from_bytes(file[4:8], "little"))  # StripOffsets
    file[entry + 2 : entry + 4] = struct.pack("<H", 7)  # of the type UNDEFINED
    assert rgb_or_error_with_the_name(bytes(file)) is None


def test_orientations_match_pillow():
    image = pictogram()
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = Image.open(io.BytesIO(encode_image(image, "png", exif=exif)))
        upright = open_rgb(turned)
        np.testing.assert_array_equal(np.asarray(upright), np.asarray(ImageOps.exif_transpose(turned)))
        np.testing.assert_array_equal(np.asarray(open_rgb(upright)), np.asarray(upright), "it is not turned twice")


def test_decoding_does_not_depend_on_the_files_name():
    data = encode_image(pictogram())
    assert decode_image(data, "a.jpg").tobytes() == decode_image(data, "b").tobytes()
    assert Image.open(io.BytesIO(data)).format == "PNG"


def crafted(kind: str, width: int, height: int) -> bytes:
    """A file whose header promises so many pixels."""
    image = Image.new("RGB", (4, 4))
    if kind == "webp":  # the extended format's canvas: each side less one, in 24 bits
        canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        chunks = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas + encode_image(image, "webp")[12:]
        return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
    data = bytearray(encode_image(image, kind))
    if kind == "gif":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "bmp":
        data[18:26] = struct.pack("<II", width, height)
    else:
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit on memory is Linux's")
def test_decompression_bombs_are_rejected_within_50_mb():
    code = (
        "import resource, sys\n"
        "from grr_coca.data.images import decode_in_process as decode_image\n"
        "bombs = eval(sys.stdin.read())\n"
        "decode_image(bombs.pop('warm'), 'warm')\n"
        "in_use = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (in_use + 50 * 2**20, -1))\n"
        "for name, data in bombs.items():\n"
        "    try: decode_image(data, name)\n"
        "    except ValueError as error: print(error.cause, error)\n"
    )
    bombs = {
        f"{kind} {side}": crafted(kind, side, side)
        for kind in ("gif", "bmp", "jpeg", "webp")
        for side in (11_000, 16_000)
    }
    bombs |= {f"png {side}": png_header_of(side, side) for side in (12_000, 60_000)}
    source = repr({"warm": REAL_FILES["webp"], **bombs})
    done = subprocess.run([sys.executable, "-c", code], input=source.encode(), capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"too large {name}" for name in bombs]
    assert all("(limit " in line for line in lines)


def test_nothing_is_run_to_decode_an_image(monkeypatch):
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(UserError, match="not an image in a supported format"):
        decode_image(postscript, NAME)


def test_pillow_warnings_are_suppressed_in_threads(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # of the 16 that follow, Pillow warns
    file, before = encode_image(Image.new("RGB", (4, 4))), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode_in_process(file, NAME), range(800)))
    added = [one for one in warnings.filters if one not in before]  # two threads may add it at the same moment
    assert {module and module.pattern for _, _, _, module, _ in added} == {r"PIL(\.|$)"}
    warnings.simplefilter("error")  # another one that comes first
    assert decode_in_process(file, NAME).size == (4, 4)
    with pytest.raises(UserWarning, match="of somebody else"):
        warnings.warn("of somebody else", stacklevel=1)


def test_frame_too_large_for_pillow_is_a_corrupt_image(monkeypatch):
    def refuse(image):
        raise Image.DecompressionBombError("Image size exceeds limit")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    with pytest.raises(
        BadSample, match=rf"^{NAME}: broken or truncated image \(Image size exceeds limit\); replace it$"
    ):
        decode_in_process(encode_image(Image.new("RGB", (8, 8))), NAME)
