"""Picture files that are small, and take seconds or gigabytes to decode if their parts are not limited."""

import io
import random
import struct
import zlib

from PIL import Image, ImageCms


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def hostile_picture(made: random.Random) -> bytes:
    """A picture by grammar, with so many profile elements, scans, tiles, chunks or comments that some are rejected."""
    count = round(10 ** made.uniform(0, 5))
    side = made.choice([1, 16, 400, 2000])
    packed = zlib.compress(bytes(made.randrange(2**20)))
    makers = (
        lambda: png_with_profile(mpet_profile(count, tag=made.choice([b"D2B0", b"D2B1", b"B2D3", b"A2B0"]))),
        lambda: jpeg_with_empty_scans(count, (side, side)),
        lambda: jpeg_with(made.choice([EMPTY_COMMENT, b"\xff", b"\0", b"\xff\xf0", b"\xff\xdb\0\2"]), count),
        lambda: jpeg2000_with_tiles(count),
        lambda: jpeg2000_with_segments(count),
        lambda: tiff_of_one_tile(side, 16 * min(count, 2000)),
        lambda: tiff_of_many_strips(count),
        lambda: gif_with_comments(count, made.choice([1, 2, 60, 255])),
        lambda: png_with_chunks(made.choice([b"abCd", b"IDAT", b"tEXt"]), bytes(made.randrange(30)), count),
        lambda: png_with_chunks(made.choice([b"iCCP", b"zTXt"]), b"a\0\0" + packed, min(count, 400)),
        lambda: ppm_with_comments(count),
        lambda: ppm_with_comments_between(count),
        lambda: bmp_of_runs(made.choice([b"\0\0", b"\0\2\0\0", b"\xff\1", b"\1\1"]), count, (side, side)),
    )
    return made.choice(makers)()


# --- Colour profiles


def mpet_profile(num_elements: int, *, tag: bytes = b"D2B1") -> bytes:
    """An RGB profile with a multi-process element tag, all of whose elements are one curve set."""
    curve = (
        b"curf" + bytes(4) + struct.pack(">HH", 1, 0) + b"parf" + bytes(4) + struct.pack(">HHffff", 0, 0, 1.1, 1, 0, 0)
    )
    positions = 8 * num_elements
    start = 16 + positions
    curves = b"cvst" + bytes(4) + struct.pack(">HH", 3, 3) + struct.pack(">II", 36, len(curve)) * 3 + curve
    table = struct.pack(">II", start, len(curves)) * num_elements
    content = b"mpet" + bytes(4) + struct.pack(">HHI", 3, 3, num_elements) + table + curves
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (count,) = struct.unpack_from(">I", plain, 128)
    tags = [struct.unpack_from(">4sII", plain, 132 + 12 * place) for place in range(count)]
    moved = [(sign, offset + 12, size) for sign, offset, size in tags] + [(tag, len(plain) + 12, len(content))]
    body = b"".join(struct.pack(">4sII", *one) for one in moved) + plain[132 + 12 * count :] + content
    profile = plain[:128] + struct.pack(">I", count + 1) + body
    return struct.pack(">I", len(profile)) + profile[4:]


def png_with_profile(profile: bytes, side: int = 8) -> bytes:
    """A PNG with a colour profile."""
    return _saved(Image.new("RGB", (side, side), (90, 120, 30)), "PNG", icc_profile=profile)


# --- JPEG


def jpeg_with_empty_scans(num_scans: int, size: tuple[int, int] = (5000, 5000)) -> bytes:
    """A progressive JPEG whose first scan is repeated without data."""
    whole = _saved(Image.new("L", size, 90), "JPEG", progressive=True)
    first = whole.index(b"\xff\xda")
    header = whole[first : first + 2 + struct.unpack_from(">H", whole, first + 2)[0]]
    ac = header[:-3] + bytes([1, 63, 0x00])  # coefficients 1 … 63, of which none is there
    return whole[:-2] + ac * num_scans + b"\xff\xd9"


def jpeg_with(filler: bytes, count: int) -> bytes:
    """A JPEG with bytes before its tables."""
    whole = _saved(Image.new("L", (8, 8)), "JPEG")
    return whole[:2] + filler * count + whole[2:]


EMPTY_COMMENT = b"\xff\xfe\0\2"


# --- JPEG 2000


def jpeg2000_with_tiles(num_tiles: int) -> bytes:
    """A JPEG 2000 codestream of one row of tiles of 1 × 1."""
    size = struct.pack(">HIIIIIIIIH", 0, num_tiles, 1, 0, 0, 1, 1, 0, 0, 1) + b"\7\1\1"
    coding = b"\0" + struct.pack(">BHB", 0, 1, 0) + bytes([0, 4, 4, 0, 1])
    quantization = b"\x40\x40"
    segments = ((0xFF51, size), (0xFF52, coding), (0xFF5C, quantization))
    head = b"".join(struct.pack(">HH", marker, 2 + len(content)) + content for marker, content in segments)
    return b"\xff\x4f" + head + struct.pack(">HHHIBB", 0xFF90, 10, 0, 0, 0, 1) + b"\xff\x93\0\xff\xd9"


def jpeg2000_with_segments(count: int) -> bytes:
    """A JPEG 2000 codestream with so many empty comments in its header."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "jpeg2000", no_jp2=True)
    whole = file.getvalue()
    place = 4 + struct.unpack_from(">H", whole, 4)[0]
    return whole[:place] + b"\xff\x64\0\4\0\1" * count + whole[place:]


# --- TIFF


def tiff(entries: "list[tuple[int, int, int, int]]", more: bytes = b"") -> bytes:
    """A TIFF of one directory. `entries`: tag, type, count, value; `more`: what follows, at `TIFF_BODY(entries)`."""
    entries = sorted(entries)
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + more


def tiff_body(num_entries: int) -> int:
    """Where `more` of a TIFF of so many entries begins."""
    return 14 + 12 * num_entries


def tiff_of_one_tile(side: int, tile: int) -> bytes:
    """A deflated grey TIFF of one tile, which is larger than the picture."""
    packer = zlib.compressobj()
    data = b"".join([packer.compress(bytes(2**20)), packer.flush()])
    place = tiff_body(10)
    return tiff(
        [
            (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
            (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, place), (325, 4, 1, len(data)),
        ],
        data,
    )  # fmt: skip


def tiff_of_many_strips(count: int) -> bytes:
    """A grey TIFF that names one strip many times."""
    place = tiff_body(8)
    return tiff(
        [
            (256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1),
            (273, 4, count, place), (278, 4, 1, 1),
        ],
        struct.pack("<I", 8) * count,
    )  # fmt: skip


# --- GIF, PNG, PPM, BMP


def gif_with_comments(num_bytes: int, block: int = 2) -> bytes:
    """A GIF with a comment in small blocks before its picture."""
    whole = _saved(Image.new("P", (8, 8)), "GIF")
    start = 13 + (3 << (whole[10] & 7) + 1 if whole[10] & 128 else 0)
    blocks = (bytes([block]) + b"a" * block) * (num_bytes // (block + 1))
    return whole[:start] + b"!\xfe" + blocks + b"\0" + whole[start:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with_chunks(kind: bytes, content: bytes, count: int) -> bytes:
    """A PNG with a chunk many times before its pixels."""
    whole = _saved(Image.new("L", (8, 8)), "PNG")
    return whole[:33] + _chunk(kind, content) * count + whole[33:]


def ppm_with_comments(count: int) -> bytes:
    """A plain PPM of one pixel with comments in its header."""
    return b"P3\n" + b"#\n" * count + b"1 1 255\n1 2 3\n"


def ppm_with_comments_between(count: int) -> bytes:
    """A plain PPM with comments among its numbers."""
    return b"P3\n2 1 255\n1 2 3\n" + b"#\n" * count + b"4 5 6\n"


def bmp_of_runs(pairs: bytes, count: int, size: tuple[int, int] = (4000, 4000)) -> bytes:
    """A BMP with run lengths of 8 bits: two bytes many times."""
    head = struct.pack("<IiiHHIIIIII", 40, *size, 1, 8, 1, 0, 0, 0, 256, 0)
    palette = bytes(1024)
    place = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, place) + head + palette + pairs * count
