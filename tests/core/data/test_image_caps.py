"""Files whose parts would take seconds or gigabytes are rejected by one line; large files of ordinary programs load."""

import io
import struct
import zlib

import hostile_pictures as hostile
import numpy as np
import pytest
from PIL import Image, ImageCms
from support import encode_image

from grr_coca.data.image_caps import MAX_PROFILE_BYTES, is_usable_profile, require_within_caps
from grr_coca.data.images import open_header
from grr_coca.data.isolated import decode_image
from grr_coca.data.sources.base import BadSample, Cause

MEGABYTE = zlib.compress(bytes(2**20 - 1))

REJECTED = {
    "too many scans": lambda: hostile.jpeg_with_empty_scans(400),
    "too many scans/of a small picture": lambda: hostile.jpeg_with_empty_scans(1000, (64, 64)),
    "too many segments": lambda: hostile.jpeg_with(hostile.EMPTY_COMMENT, 10_001),
    "too many bytes between segments": lambda: hostile.jpeg_with(b"\xff", 70_000),
    "too many bytes between segments/zeros": lambda: hostile.jpeg_with(hostile.EMPTY_COMMENT + bytes(100), 700),
    "too many segments/without a length": lambda: hostile.jpeg_with(b"\xff\xf0\xff\xff", 11_000),
    "too many bytes of tables": lambda: hostile.jpeg_with(b"\xff\xdb\0\x43\0" + b"\1" * 64, 1000),
    "too many EXIF segments": lambda: hostile.jpeg_with(b"\xff\xe1\0\x08Exif\0\0", 20),
    "too many Photoshop resources": lambda: hostile.jpeg_with(
        b"\xff\xed\xff\xf2Photoshop 3.0\0" + b"8BIM\4\1\0\0\0\0\0\0" * 5459, 2
    ),
    "too many tiles": lambda: hostile.jpeg2000_with_tiles(65_000),
    "too many pixels in a tile": lambda: hostile.tiff_of_one_tile(64, 46_000),
    "too many tiles or strips": lambda: hostile.tiff_of_many_strips(200_000),
    "too many pixels in a tile/of signed numbers": lambda: hostile.tiff(
        [(256, 4, 1, 64), (257, 4, 1, 64), (322, 9, 1, 46_000), (323, 9, 1, 46_000)]
    ),
    "too many pixels in all tiles": lambda: hostile.tiff(
        [(256, 4, 1, 64_000), (257, 4, 1, 16), (322, 4, 1, 16), (323, 4, 1, 262_144), (324, 4, 4000, 0)]
    ),
    "too many bytes of tags": lambda: hostile.tiff([(256, 4, 1, 8), (257, 4, 1, 8), (270, 2, 2**22, 0)]),
    "too many segments/of JPEG 2000": lambda: hostile.jpeg2000_with_segments(20_000),
    "too many values": lambda: hostile.tiff([(256, 4, 1, 8), (257, 4, 1, 8), (282, 5, 5000, 0)]),
    "too many blocks": lambda: hostile.gif_with_comments(60_000),
    "too many blocks/of one byte": lambda: hostile.gif_with_comments(60_000, 1),
    "too many chunks": lambda: hostile.png_with_chunks(b"abCd", b"", 11_000),
    "too many chunks/empty": lambda: hostile.png_with_chunks(b"IDAT", b"", 11_000),
    "too many colour profiles": lambda: hostile.png_with_chunks(b"iCCP", b"a\0\0" + MEGABYTE, 2),
    "too many compressed texts": lambda: hostile.png_with_chunks(b"zTXt", b"a\0\0" + MEGABYTE[:-3], 300),
    "too many EXIF bytes": lambda: hostile.png_with_chunks(b"eXIf", bytes(2**20), 2),
    "too many bytes in the header": lambda: hostile.ppm_with_comments(40_000),
    "too many comments": lambda: hostile.ppm_with_comments_between(1001),
    "too many bytes of pixel values": lambda: b"P3\n1000 1000 255\n" + b"1 " * 2**22,
    "too many bytes with run-length encoding": lambda: hostile.bmp_of_runs(b"\0\0", 2**21, (100, 100)),
    "too many pixels with run-length encoding": lambda: hostile.bmp_of_runs(b"\xff\1", 10),
    "too many pixels:": lambda: b"RIFF\0\0\0\0WEBPVP8 \x10\0\0\0\0\0\0\x9d\1\x2a\xff\x3f\xff\x3f",
    "too many pixels:/WebP": lambda: b"RIFF\0\0\0\0WEBPVP8L\x10\0\0\0\x2f\xff\xff\xff\x0f",
}


@pytest.mark.parametrize("part", REJECTED)
def test_file_beyond_a_cap_is_rejected_by_one_line(part):
    data = REJECTED[part]()
    for read in (decode_image, open_header):
        with pytest.raises(BadSample, match=f"^a.png: {part.partition('/')[0]}") as caught:
            read(data, "a.png")
        assert caught.value.cause is Cause.TOO_LARGE
        assert "\n" not in str(caught.value)


def test_jp2_box_does_not_hide_its_codestream():
    codestream = hostile.jpeg2000_with_tiles(65_000)
    head = b"\0\0\0\x0cjP  \r\n\x87\n"
    boxes = struct.pack(">I4s4sI4s", 20, b"ftyp", b"jp2 ", 0, b"jp2 ")
    header = struct.pack(">I4sIIHBBBB", 22, b"ihdr", 1, 8, 1, 7, 7, 0, 0) + struct.pack(
        ">I4sBBBI", 15, b"colr", 1, 0, 0, 17
    )
    boxes += struct.pack(">I4s", 8 + len(header), b"jp2h") + header
    with pytest.raises(BadSample, match="too many tiles"):
        require_within_caps(head + boxes + struct.pack(">I4s", 0, b"jp2c") + codestream, "a")
    wide = struct.pack(">I4sQ", 1, b"jp2c", 16 + len(codestream)) + codestream
    with pytest.raises(BadSample, match="too many tiles"):
        require_within_caps(head + boxes + wide, "a")


def test_descriptions_of_colours_of_jp2_are_counted():
    whole = encode_image(Image.new("RGB", (64, 64)), "jpeg2000")
    place = whole.index(b"jp2h") - 4
    (size,) = struct.unpack_from(">I", whole, place)
    colours = struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 16) * 200
    header = struct.pack(">I", size + len(colours)) + whole[place + 4 : place + size] + colours
    require_within_caps(whole, "a")
    with pytest.raises(BadSample, match="too many colour descriptions"):
        require_within_caps(whole[:place] + header + whole[place + size :], "a")


@pytest.fixture(scope="module")
def codestream():
    return encode_image(Image.new("RGB", (2048, 2048)), "jpeg2000", no_jp2=True)


@pytest.mark.parametrize("change", ["precincts", "blocks", "layers", "in a tile"])
def test_jpeg2000_parameters_that_multiply_are_rejected(codestream, change):
    data = bytearray(codestream)
    place = data.index(b"\xff\x52")
    if change == "blocks":
        data[place + 10 : place + 12] = b"\0\0"
    elif change == "layers":
        data[place + 6 : place + 8] = b"\xff\xff"
        data[place + 9] = 32
    else:  # precincts of 1 × 1, for each of the resolutions
        coding = bytes(data[place : place + 14])
        levels = coding[9]
        new = coding[:2] + struct.pack(">H", 13 + levels) + b"\1" + coding[5:] + bytes(levels + 1)
        if change == "precincts":
            data[place : place + 14] = new
        else:
            begin = data.index(b"\xff\x90")
            data[begin + 6 : begin + 10] = bytes(4)
            data[begin + 12 : begin + 12] = new
    with pytest.raises(BadSample, match=r"too many (code blocks|packets)"):
        require_within_caps(bytes(data), "a")


# --- Files that must load


def chunked_png(image: Image.Image, size: int) -> bytes:
    """A PNG whose pixels are in chunks of some bytes."""
    whole = encode_image(image, "png", compress_level=1)
    pixels, place = b"", 33
    while place < len(whole):
        (length,) = struct.unpack_from(">I", whole, place)
        pixels += whole[place + 8 : place + 8 + length] if whole[place + 4 : place + 8] == b"IDAT" else b""
        place += 12 + length
    parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
    chunks = (
        struct.pack(">I", len(one)) + b"IDAT" + one + struct.pack(">I", zlib.crc32(b"IDAT" + one)) for one in parts
    )
    return whole[:33] + b"".join(chunks) + struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


ACCEPTED = {
    "progressive JPEG of 350 scans": lambda: hostile.jpeg_with_empty_scans(350, (400, 300)),
    "progressive JPEG": lambda: encode_image(noise(500), "jpeg", progressive=True, quality=97),
    "JPEG with a profile of 200 segments": lambda: encode_image(noise(50), "jpeg", icc_profile=bytes(13_000_000)),
    "PNG in chunks of 64 bytes": lambda: chunked_png(noise(300), 64),
    "PNG in chunks of 8 kB": lambda: chunked_png(noise(500), 8192),
    "PNG with a row in each chunk": lambda: chunked_png(noise(700), 2101),
    "TIFF of one strip for each row": lambda: encode_image(noise(1500), "tiff", tiffinfo={278: 1}, compression="raw"),
    "TIFF of tiles": lambda: tiled_tiff(1000, 256),
    "TIFF of a tile larger than the picture": lambda: tiled_tiff(60, 512),
    "GIF": lambda: encode_image(noise(150).quantize(), "gif", comment=b"a" * 100_000),
    "GIF of several frames": lambda: encode_image(
        noise(150).quantize(), "gif", save_all=True, append_images=[noise(150).quantize(50)] * 3
    ),
    "JPEG 2000 of tiles": lambda: encode_image(noise(256), "jpeg2000", tile_size=(64, 64)),
    "JPEG 2000 with precincts": lambda: encode_image(
        noise(256), "jpeg2000", precinct_size=(128, 128), codeblock_size=(32, 32), quality_layers=[30, 20, 10]
    ),
    "PPM with a comment": lambda: b"P6\n# by a program\n100 100\n255\n" + b" " * 30_000,
    "PPM of spaces": lambda: b"P5 500 500 255\n" + b" " * 250_000,
    "plain PPM": lambda: b"P3\n100 100\n255\n" + b"1 22 255\n" * 10_000,
}


def tiled_tiff(side: int, tile: int) -> bytes:
    """A grey TIFF of tiles that are not compressed."""
    count = (-(-side // tile)) ** 2
    body = hostile.tiff_body(10)
    offsets = struct.pack(f"<{count}I", *(body + 8 * count + tile * tile * place for place in range(count)))
    sizes = struct.pack("<I", tile * tile) * count
    one = count == 1
    return hostile.tiff(
        [
            (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1),
            (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, count, body + 8 if one else body),
            (325, 4, count, tile * tile if one else body + 4 * count),
        ],
        offsets + sizes + bytes(range(256)) * (tile * tile * count // 256),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ACCEPTED)
def test_large_parts_of_ordinary_files_load(kind):
    assert decode_image(ACCEPTED[kind](), "a").mode == "RGB"


def test_cap_on_png_chunks_grows_with_the_file():
    chunk = struct.pack(">I", 1024) + b"IDAT" + bytes(1028)
    require_within_caps(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(17) + chunk * 11_000, "a")


def test_scan_markers_after_the_image_are_ignored():
    data = encode_image(noise(300), "jpeg", progressive=True)
    assert decode_image(data + b"\xff\xda" * 5000, "a").size == (300, 300)


@pytest.mark.parametrize(("kind", "most"), [(b"P5", 4095), (b"P5", 100), (b"P6", 1023), (b"P6", 65535), (b"P6", 7)])
def test_ppm_with_other_ranges_matches_pillow(kind, most):
    samples = np.random.default_rng(0).integers(0, most + 1, (13, 17 * (3 if kind == b"P6" else 1)))
    data = b"%s\n# a comment\n17 13 %d\n" % (kind, most) + samples.astype(">u2" if most > 255 else np.uint8).tobytes()
    expected = Image.open(io.BytesIO(data))
    expected = Image.fromarray((np.asarray(expected) / 257).round().astype(np.uint8)) if most == 4095 else expected
    assert np.array_equal(np.asarray(decode_image(data, "a")), np.asarray(expected.convert("RGB")))


# --- Colour profiles


def test_profile_with_multi_process_elements_is_ignored():
    profile = hostile.mpet_profile(20_000)
    assert not is_usable_profile(profile)
    data = hostile.png_with_profile(profile)
    assert decode_image(data, "a", to_srgb=True).getpixel((0, 0)) == (90, 120, 30)
    assert "icc_profile" not in decode_image(data, "a", to_srgb=True).info


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), True),
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), True),
        (hostile.mpet_profile(1, tag=b"B2D3"), False),
        (bytes(128) + struct.pack(">I", 10**9) + bytes(100), False),
        (bytes(MAX_PROFILE_BYTES), True),
        (bytes(MAX_PROFILE_BYTES + 1), False),
        (b"", False),
    ],
)
def test_usable_profiles(profile, expected):
    assert is_usable_profile(profile) is expected
