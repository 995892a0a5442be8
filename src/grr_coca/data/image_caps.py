"""Limits on the parts of image files, which are checked on the raw bytes before decoding.

A limit on the number of pixels limits neither the time nor the memory of decoding: an 88-byte JPEG 2000 file can have
65,000 tiles, a JPEG file can have 20,000 empty scans, and Pillow parses headers byte by byte in Python. Each check
walks through the structure of a file once, takes time linear in the number of the file's parts, and never allocates
memory based on sizes that the file declares.

The limits are far above the values in files that ordinary programs write. Some limits grow with the size of the image,
because large images need more parts. Decoding a file within the limits takes at most a few times as long as decoding an
ordinary file of the same size.
"""

import re
import struct
from collections.abc import Callable, Iterator

from grr_coca.data.sources.base import BadSample, Cause

MAX_PIXELS = 100_000_000
"""Maximum number of pixels. Larger images are rejected before decoding."""

MAX_PROFILE_BYTES = 4 * 2**20
"""Maximum size of a colour profile. Larger profiles are ignored. Printing profiles have up to 3 MB."""


_SAVE_AGAIN = "save the image again with another program"


class _LimitError(Exception):
    """Error for a part of a file that exceeds its limit. The message names the part, and how to fix the file."""


def require_within_caps(data: bytes, name: str) -> None:
    """Check that the parts of an image file can be decoded in bounded time and memory.

    Files in other formats than those of `_CHECKS`, such as SVG, AVIF and HEIC, are not checked.

    Args:
        data: Content of the file.
        name: Name of the file in messages.

    Raises:
        BadSample: If a part exceeds its limit (`Cause.TOO_LARGE`). Files with an invalid structure pass this check,
            because the decoder reports them.
    """
    check = next((check for magic, check in _CHECKS if data.startswith(magic)), None)
    if check is None:
        return
    try:
        check(data)
    except _LimitError as error:
        raise BadSample(f"{name}: {error}", Cause.TOO_LARGE) from None
    except struct.error:  # the file is truncated
        return


def _require(what: str, number: int, limit: int, fix: str = _SAVE_AGAIN) -> None:
    if number > limit:
        raise _LimitError(f"too many {what}: {number:,} (limit {limit:,}); {fix}")


def _require_size(width: int, height: int) -> None:
    _require("pixels", width * height, MAX_PIXELS, "scale the image down first")


# --- JPEG

_MAX_SCANS = 1000
"""Maximum number of scans. Progressive files usually have about ten scans, or several hundred if each bit of each
coefficient has a separate scan."""
_MAX_SCANNED_PIXELS = 10**10
"""Maximum product of the number of scans and the number of pixels. A scan without data takes 0.07 ns per pixel, so such
scans take at most 0.8 s in total."""
_MAX_SEGMENTS = 10_000
"""Maximum number of segments before the first scan. Profiles and thermal images are split into hundreds of segments."""
_MAX_FILL = 2**16
"""Maximum number of bytes between segments, which Pillow reads one by one. Some programs align segments in this way."""
_MAX_TABLES = 2**16
"""Maximum size of tables and frame headers, which Pillow parses in Python. Ordinary files have less than 2 kB."""
_MAX_EXIF_SEGMENTS = 16
"""Maximum number of EXIF segments. For each segment, Pillow joins and copies all EXIF segments so far."""
_MAX_RESOURCES = 10_000
"""Maximum number of Photoshop resources."""

_SOI, _SOS, _EOI, _APP1, _DQT, _DHP = 0xD8, 0xDA, 0xD9, 0xE1, 0xDB, 0xDE
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_WITHOUT_LENGTH = frozenset({0xC8, _SOI, _EOI, *range(0xF0, 0xFE)})
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
"""Pattern of a marker, except restart markers. It does not match repeated fill bytes with `+`, because the search would
then take quadratic time in long runs of them.
"""


def _segments(data: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield, for each segment, its marker, the position of its length, and the number of bytes skipped before it."""
    while (found := _MARKER.search(data, start)) is not None:
        marker, offset = found[1][0], found.end()
        yield marker, offset, offset - 2 - start
        start = offset if marker in _WITHOUT_LENGTH else offset + int.from_bytes(data[offset : offset + 2], "big")


def _check_jpeg(data: bytes) -> None:
    num_segments = num_exif = fill = tables = pixels = components = 0
    frame = 0
    for marker, offset, skipped in _segments(data, 2):
        num_segments, fill = num_segments + 1, fill + skipped
        _require("segments", num_segments, _MAX_SEGMENTS)
        _require("bytes between segments", fill, _MAX_FILL)
        if marker in _FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, offset + 3)
            frame, pixels = marker, max(pixels, height * width)
        if marker in _FRAMES or marker in (_DQT, _DHP):
            tables += int.from_bytes(data[offset : offset + 2], "big")
            _require("bytes of tables", tables, _MAX_TABLES)
        if marker == _APP1 and data[offset + 2 : offset + 6] == b"Exif":
            num_exif += 1
            _require("EXIF segments", num_exif, _MAX_EXIF_SEGMENTS)
        if marker == _SOS:
            _require("Photoshop resources", data.count(b"8BIM", 0, offset), _MAX_RESOURCES)
            # A sequential file whose first scan contains all components is decoded in one pass.
            if frame in _PROGRESSIVE or data[offset + 2 : offset + 3] != bytes([components]):
                _check_scans(data, offset, pixels)
            return


def _check_scans(data: bytes, start: int, pixels: int) -> None:
    limit = min(_MAX_SCANS, _MAX_SCANNED_PIXELS // max(1, pixels))
    # This count is an upper bound, because the bytes may also occur in segments and after the image.
    if data.count(b"\xff\xda", start) >= limit:
        num_scans = 1
        for marker, _, _ in _segments(data, start):
            num_scans += marker == _SOS
            if marker == _EOI:
                break
            _require("scans for an image of this size", num_scans, limit)


# --- PNG

_MAX_CHUNKS = 10_000
_BYTES_PER_CHUNK = 512
"""A file may have `_MAX_CHUNKS` chunks, plus one chunk for each piece of this many bytes. libpng writes chunks of 8 kB,
and some programs write one chunk per row."""
_MAX_COMPRESSED_TEXTS = 256
"""Maximum number of compressed texts, each of which expands to up to 1 MB."""
_MAX_EXIF_BYTES = 2**20


def _check_png(data: bytes) -> None:
    offset, num_chunks, num_texts, num_profiles, exif = 8, 0, 0, 0, 0
    limit = _MAX_CHUNKS + len(data) // _BYTES_PER_CHUNK
    unpack = struct.Struct(">I4s").unpack_from
    while offset + 8 <= len(data):
        size, kind = unpack(data, offset)
        offset += 12 + size
        num_chunks += 1
        if kind == b"IDAT" and num_chunks <= limit:
            continue
        if kind == b"IEND":
            break
        num_texts += kind in (b"zTXt", b"iTXt")
        num_profiles += kind == b"iCCP"
        exif += size if kind == b"eXIf" else 0
        _require("chunks for a file of this size", num_chunks, limit)
    _require("compressed texts", num_texts, _MAX_COMPRESSED_TEXTS)
    _require("colour profiles", num_profiles, 1)
    _require("EXIF bytes", exif, _MAX_EXIF_BYTES)


# --- GIF

_MAX_BLOCKS = 10_000
_BYTES_PER_BLOCK = 64
"""A file may have `_MAX_BLOCKS` blocks, plus one block for each piece of this many bytes. Programs fill blocks with up
to 255 bytes.
"""


def _check_gif(data: bytes) -> None:
    """Walk through the file up to the second frame, as Pillow does. Each block or byte between blocks is one step."""
    limit = _MAX_BLOCKS + len(data) // _BYTES_PER_BLOCK
    flags, end = data[10] if len(data) > 10 else 0, len(data)
    offset, num_blocks, num_frames = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0), 0, 0
    while offset < end and data[offset] != 0x3B:
        kind, offset, num_blocks = data[offset], offset + 1, num_blocks + 1
        if kind == 0x2C:
            if num_frames:
                return
            left, top, width, height, flags = struct.unpack_from("<HHHHB", data, offset)
            _require_size(left + width, top + height)
            offset += 10 + (3 << (flags & 7) + 1 if flags & 128 else 0)
            num_frames = 1
        elif kind == 0x21:
            offset += 1
        while kind in (0x21, 0x2C) and offset < end and data[offset] and num_blocks <= limit:
            offset += 1 + data[offset]
            num_blocks += 1
        offset += kind in (0x21, 0x2C)
        _require("blocks for a file of this size", num_blocks, limit)


# --- BMP

_MAX_RUN_BYTES = 2**22
_MAX_RUN_PIXELS = 10_000_000
"""Limits on run-length encoding, which Pillow decodes in Python. This takes 0.1 µs per pixel and 0.3 µs per byte."""


def _check_bmp(data: bytes) -> None:
    size = int.from_bytes(data[14:18], "little")
    if size >= 40 and struct.unpack_from("<I", data, 30)[0] in (1, 2):
        width, height = struct.unpack_from("<ii", data, 18)
        _require("bytes with run-length encoding", len(data), _MAX_RUN_BYTES)
        _require("pixels with run-length encoding", abs(width * height), _MAX_RUN_PIXELS)


# --- PPM

_MAX_HEAD = 2**16
"""Maximum size of the header including comments, which Pillow reads byte by byte."""
_MAX_PLAIN_BYTES = 2**23
"""Maximum size of numbers that are written as text. Pillow converts them in Python, which takes 0.2 µs per byte."""
_MAX_COMMENTS = 1000
"""Maximum number of comments among the numbers. For each comment, Pillow copies a megabyte."""
_COMMENT = re.compile(rb"#[^\r\n]*(?:[\r\n]|$)")


def _check_ppm(data: bytes) -> None:
    num_fields = 3 if data[1:2] in b"14" else 4
    if re.match(rb"(?:\s*\S+\s){%d}" % num_fields, _COMMENT.sub(b"", data[:_MAX_HEAD])) is None:
        _require("bytes in the header", len(data), _MAX_HEAD)
    if data[1:2] in b"123":
        _require("comments", data.count(b"#"), _MAX_COMMENTS)
        _require("bytes of pixel values as text", len(data), _MAX_PLAIN_BYTES)


# --- TIFF

_MIN_TILE_PIXELS = 2**22
"""Number of pixels that a tile can always have, even if its image is smaller."""
_MAX_TILES = 2**17
"""Maximum number of tiles or strips. Strips of one row are common, and tiles have at least 16 × 16 pixels."""
_MAX_VALUES = 2**18
"""Maximum number of values in a tag, except for tiles, rational numbers and bytes. A 16-bit palette has three values
for each colour."""
_MAX_TAGS = 4096
_MAX_SHARED_BYTES = 2**20
"""Number of bytes by which the total size of all tags may exceed the file. Tags can share values, so the total can be
larger than the file."""
_MAX_RATIONALS = 4096
"""Maximum number of rational values. Pillow creates a fraction object for each of them."""
_TILE_TAGS = frozenset({273, 279, 324, 325})
_DIRECTORIES = frozenset({34665, 34853, 40965})
"""Tags of the EXIF, GPS and interoperability directories, which Pillow also reads."""
_VALUE_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_VALUE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Size of a value in bytes, by its type. Values of other types have one byte."""
_MAX_PIXELS_OF_TILES = 2**26
"""Maximum total number of pixels in all tiles. Large images can have twice as many pixels in tiles as in the image,
because tiles are cropped at the image's edges."""


def _check_tiff(data: bytes) -> None:
    order, is_big = "<" if data[:2] == b"II" else ">", data[2] == 43
    if data[3] == 43:
        raise _LimitError(f"unsupported byte order of BigTIFF; {_SAVE_AGAIN}")
    (first,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    tags, more, num_tiles = _check_directory(data, first, order, is_big=is_big)
    for offset in more.values():
        _check_directory(data, offset, order, is_big=is_big)
    width, height = tags.get(256, 0), tags.get(257, 0)
    _require_size(width, height)
    tile = tags.get(322, 0) * tags.get(323, 0)
    _require("pixels in a tile", tile, max(_MIN_TILE_PIXELS, width * height * 5 // 4))
    most = max(_MAX_PIXELS_OF_TILES, 2 * width * height * min(8, max(1, tags.get(277, 1))))
    _require("pixels in all tiles", num_tiles * tile, most)


def _check_directory(
    data: bytes, start: int, order: str, *, is_big: bool
) -> tuple[dict[int, int], dict[int, int], int]:
    """Check a directory of TIFF tags.

    Return the first value of each integer tag, the positions of other directories by tag, and the number of tiles. If a
    tag is repeated, its largest value is returned, because readers differ in the entry that they use.

    Raises:
        _LimitError: If the directory or one of its tags exceeds a limit.
    """
    form = struct.Struct(order + ("HHQ8s" if is_big else "HHI4s"))
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)
    start += 8 if is_big else 2
    tags: dict[int, int] = {}
    more: dict[int, int] = {}
    num_bytes = num_tiles = 0
    _require("tags", count, _MAX_TAGS)
    for offset in range(start, min(start + count * form.size, len(data) - form.size + 1), form.size):
        tag, kind, num_values, value = form.unpack_from(data, offset)
        if tag in _TILE_TAGS:
            _require("tiles or strips", num_values, _MAX_TILES)
        elif kind in (5, 10):
            _require(f"values of tag {tag}", num_values, _MAX_RATIONALS)
        elif kind not in (1, 2, 6, 7):
            _require(f"values of tag {tag}", num_values, _MAX_VALUES)
        num_bytes += num_values * _VALUE_BYTES.get(kind, 1)  # readers copy the values of each tag
        num_tiles = max(num_tiles, num_values if tag in (324, 325) else 0)
        if kind in _VALUE_FORMATS and num_values:
            number = struct.unpack_from(order + _VALUE_FORMATS[kind], value.ljust(8, b"\0"))[0]
            tags[tag] = max(tags.get(tag, 0), number)
            if tag in _DIRECTORIES:
                more.setdefault(tag, number)
    _require("bytes of tags", num_bytes, len(data) + _MAX_SHARED_BYTES)
    return tags, more, num_tiles


# --- JPEG 2000

_MAX_J2K_TILES = 1000
_PIXELS_PER_J2K_TILE = 4096
"""An image may have `_MAX_J2K_TILES` tiles, plus one tile for each area of this many pixels. OpenJPEG allocates 12 kB
per tile before decoding."""
_MAX_PACKETS = 2**22
"""Maximum number of packets: tiles × layers × resolutions × components × precincts. Large images have 200,000."""
_MAX_J2K_SEGMENTS = 2**14
"""Maximum number of header segments, in addition to eight segments per tile."""
_MAX_COLOURS = 100
"""Maximum number of colour descriptions in a JP2 file."""
_MIN_BLOCK_PIXELS = 256
_MAX_BLOCKS_OF_LARGE = 2**17
"""Maximum number of code blocks if they have fewer than `_MIN_BLOCK_PIXELS` pixels."""


def _check_j2k(data: bytes) -> None:
    start = 0 if data.startswith(b"\xff\x4f") else _codestream(data)
    if start < 0 or data[start + 2 : start + 4] != b"\xff\x51":
        return
    right, bottom, left, top, across, down, first_across, first_down, components = struct.unpack_from(
        ">IIIIIIIIH", data, start + 8
    )
    width, height = max(0, right - left), max(0, bottom - top)
    _require_size(width, height)
    if not across or not down:
        return
    num_tiles = -(-max(0, right - first_across) // across) * -(-max(0, bottom - first_down) // down)
    _require("tiles for an image of this size", num_tiles, _MAX_J2K_TILES + width * height // _PIXELS_PER_J2K_TILE)
    tile = min(across, width) * min(down, height)
    offset, num_parts, num_segments, end_of_part = start + 2, 0, 0, len(data)
    while offset + 4 <= len(data):
        num_segments += 1
        _require("segments", num_segments, _MAX_J2K_SEGMENTS + 8 * num_tiles)
        marker, size = struct.unpack_from(">HH", data, offset)
        if marker == 0xFF90:  # a tile part, whose header may have different parameters
            num_parts += 1
            _require("tile parts", num_parts, _MAX_J2K_TILES + 4 * num_tiles)
            (length,) = struct.unpack_from(">I", data, offset + 6)
            end_of_part = offset + length if length else len(data)
        elif marker == 0xFF93:  # the data begin here
            offset = max(offset + 2, end_of_part)
            continue
        elif marker in (0xFF52, 0xFF53):
            _check_coding(data, offset, marker, components, tile, width * height)
        elif marker == 0xFFD9 or size < 2:
            return
        offset += 2 + size


def _codestream(data: bytes) -> int:
    """Return the position at which the codestream of a JP2 file starts, or -1 if the file has no codestream.

    Raises:
        _LimitError: If the file has too many boxes or colour descriptions.
    """
    offset = 0
    for _ in range(1000):
        if offset + 8 > len(data):
            return -1
        size, kind = struct.unpack_from(">I4s", data, offset)
        head = 16 if size == 1 else 8
        if kind == b"jp2c":
            return offset + head
        if kind == b"jp2h":
            end = offset + size if size >= head else len(data)
            _require("colour descriptions", data.count(b"colr", offset, end), _MAX_COLOURS)
        size = struct.unpack_from(">Q", data, offset + 8)[0] if size == 1 else size
        if size < head:
            return -1
        offset += size
    raise _LimitError(f"too many boxes: more than 1,000; {_SAVE_AGAIN}")


def _check_coding(data: bytes, offset: int, marker: int, components: int, tile: int, pixels: int) -> None:
    if marker == 0xFF52:  # COD: style, progression, layers, transform of components
        style, _, layers, _ = struct.unpack_from(">BBHB", data, offset + 4)
        offset += 9
    else:  # COC: component, style
        wide = components > 256
        style, layers = data[offset + 5 + wide : offset + 6 + wide][0], 1
        offset += 6 + wide
    levels, block_width, block_height = struct.unpack_from(">BBB", data, offset)
    block = 16 << (block_width & 15) << (block_height & 15)
    if block < _MIN_BLOCK_PIXELS:
        _require("code blocks", pixels // block, _MAX_BLOCKS_OF_LARGE)
    precincts = data[offset + 5 : offset + 6 + levels] if style & 1 else b""
    # Each resolution has a quarter of the pixels of the next one; the last resolution has all pixels of the tile.
    num = sum(
        max(1, (tile >> 2 * (levels - number)) >> (size & 15) >> (size >> 4)) for number, size in enumerate(precincts)
    ) or (levels + 1)
    _require("packets", max(1, pixels // max(1, tile)) * layers * components * num, _MAX_PACKETS)


# --- WebP


def _check_webp(data: bytes) -> None:
    """Check the image size, because libwebp allocates memory for the entire image when it opens a file.

    The format is described at https://developers.google.com/speed/webp/docs/riff_container.
    """
    kind = data[8:16]
    if kind == b"WEBPVP8X" and len(data) >= 30:
        _require_size(1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"))
    elif kind == b"WEBPVP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        _require_size(width & 0x3FFF, height & 0x3FFF)
    elif kind == b"WEBPVP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        _require_size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))


_CHECKS: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes], None]], ...] = (
    (b"\xff\xd8\xff", _check_jpeg),
    (b"\x89PNG\r\n\x1a\n", _check_png),
    (b"RIFF", _check_webp),
    ((b"GIF87a", b"GIF89a"), _check_gif),
    (b"BM", _check_bmp),
    ((b"II\x2a\0", b"MM\0\x2a", b"MM\x2a\0", b"II\0\x2a", b"MM\0\x2b", b"II\x2b\0"), _check_tiff),
    ((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"), _check_j2k),
    (tuple(b"P%c" % kind for kind in b"0123456fy"), _check_ppm),
)
"""First bytes that Pillow accepts for each format, and the check function of the format."""


# --- Colour profiles

_MAX_PROFILE_TAGS = 100
_MULTI_PROCESS = re.compile(rb"[DB]2[BD][0-3]")


def is_usable_profile(profile: bytes) -> bool:
    """Return whether an ICC profile can be applied in bounded time.

    Profiles of more than `MAX_PROFILE_BYTES` and profiles with more than `_MAX_PROFILE_TAGS` tags are rejected. So are
    profiles with multi-process elements (`D2B0` … `B2D3`), because these elements may share their curves, so a few
    bytes can cause minutes of work. Almost no image has such a profile.
    """
    if not 132 <= len(profile) <= MAX_PROFILE_BYTES:
        return False
    (count,) = struct.unpack_from(">I", profile, 128)
    if count > _MAX_PROFILE_TAGS:
        return False
    return all(
        _MULTI_PROCESS.fullmatch(profile[offset : offset + 4]) is None for offset in range(132, 132 + 12 * count, 12)
    )
