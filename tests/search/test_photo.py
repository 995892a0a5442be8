"""Metadata from cameras and users in image files, and in XMP files next to them."""

import io
import os
import shutil
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest
from library import photo_of
from PIL import ExifTags, Image, TiffImagePlugin
from support import encode_image

from grr_coca.data.image_files import ImageFile
from grr_coca_search.describe import photo_of as photo_with
from grr_coca_search.describe import sidecar_state
from grr_coca_search.entry import Photo
from grr_coca_search.fields import READER_VERSION
from grr_coca_search.photo import read_image_metadata

PHOTOS = Path(__file__).parent / "photos"
needs_xml = pytest.mark.skipif(find_spec("defusedxml") is None, reason="XMP needs defusedxml")
COLOURS = Image.new("RGB", (8, 8), "red")
EVERYTHING = photo_of(
    taken="2024-05-01T12:34:56",
    camera="FUJIFILM X100V",
    lens="XF 23mm F2",
    lat=48.137222,
    lon=-11.575556,
    headline="Vier Farben",
    keywords=("zebra", "straße", "animals"),
)


def read_photo(file: ImageFile) -> Photo:
    return photo_with(file, read_image_metadata(file.read(), file.name))


def read(path: Path) -> Photo:
    """What a file says."""
    return read_photo(ImageFile(str(path)))


def values(photo: Photo, *names: str) -> tuple:
    return tuple(map(photo.fields.get, names))


def read_bytes(data: bytes) -> Photo:
    return read_photo(ImageFile("a", lambda: data))


@needs_xml
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif", "heic"])
def test_reads_exiftool_metadata_in_each_format(suffix):
    if suffix == "heic":
        pytest.importorskip("pillow_heif", reason="HEIC needs the extra [photos]")
    assert read(PHOTOS / f"exiftool.{suffix}") == EVERYTHING


def test_iptc_is_read():
    expected = photo_of(taken="2024-05-01", headline="Vier Farben", keywords=("zebra", "straße"))
    assert read(PHOTOS / "exiftool-iptc.jpg") == expected


@needs_xml
def test_reads_exiv2_and_the_default_language_title():
    photo = read(PHOTOS / "exiv2.jpg")
    assert photo == photo_of(
        taken="2024-05-01T12:34:56", camera="NIKON D750", headline="Four colours", keywords=("zebra", "street")
    )


@needs_xml
def test_xmp_files_next_to_an_image_are_read():
    photo = read(PHOTOS / "sidecar.jpg")
    assert photo.sidecars
    assert values(photo, "taken", "lat", "lon") == ("2023-01-02T03:04:05", -33.5, 151.25)
    assert (photo.fields["headline"], photo.keywords) == ("Beside", ("aardvark",))
    assert read(PHOTOS / "exiv2-beside.jpg").keywords == ("zebra", "animals")


@needs_xml
def test_xmp_file_overrides_the_image_and_adds_keywords(tmp_path):
    shutil.copy(PHOTOS / "exiftool.jpg", tmp_path / "a.jpg")
    shutil.copy(PHOTOS / "sidecar.xmp", tmp_path / "a.xmp")
    shutil.copy(PHOTOS / "exiv2-beside.jpg.xmp", tmp_path / "a.jpg.xmp")
    photo = read(tmp_path / "a.jpg")
    assert values(photo, "headline", "taken", "camera") == ("Beside", "2023-01-02T03:04:05", "FUJIFILM X100V")
    assert photo.keywords == ("zebra", "straße", "animals", "aardvark")


def test_state_of_xmp_files_changes_with_each_of_them(tmp_path):
    file = ImageFile(str(tmp_path / "a.jpg"))
    states = [sidecar_state(file)]
    for name, content in (("a.xmp", b"1"), ("a.jpg.xmp", b"1"), ("a.xmp", b"12")):
        (tmp_path / name).write_bytes(content)
        states.append(sidecar_state(file))
    (tmp_path / "a.xmp").unlink()
    states.append(sidecar_state(file))
    assert states[0] == READER_VERSION
    assert len(set(states)) == 5
    assert max(states) < 2**63


def test_metadata_survives_json():
    assert Photo.from_dict(EVERYTHING.to_dict()) == EVERYTHING
    assert Photo.from_dict({**Photo(sidecars=3).to_dict(), "of a newer version": 1}) == Photo(sidecars=3)
    assert EVERYTHING.words == ("Vier Farben", "zebra", "straße", "animals")


# --- EXIF


def with_exif(
    tags: dict[int, object], gps: dict[int, object] | None = None, main: dict[int, object] | None = None
) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update(tags)
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps or {})
    exif.update(main or {})
    return encode_image(COLOURS, "jpeg", exif=exif)


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("2024:02:29 23:59:59", "2024-02-29T23:59:59"),
        ("2024:02:29 23:59:59\0", "2024-02-29T23:59:59"),
        ("0000:00:00 00:00:00", None),
        ("0000:01:01 00:00:00", None),
        ("    :  :     :  :  ", None),
        ("2023:02:29 00:00:00", None),
        ("2024:13:01 00:00:00", None),
        ("2024-05-01", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_time_that_never_was_is_no_time(written, taken):
    assert read_bytes(with_exif({ExifTags.Base.DateTimeOriginal: written})).fields.get("taken") == taken


def test_time_of_scanning_stands_in_for_a_missing_one():
    tags = {
        ExifTags.Base.DateTimeOriginal: "0000:00:00 00:00:00",
        ExifTags.Base.DateTimeDigitized: "2020:01:02 03:04:05",
    }
    assert read_bytes(with_exif(tags)).fields.get("taken") == "2020-01-02T03:04:05"


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS R5", "Canon EOS R5"),
        ("NIKON CORPORATION", "NIKON D750", "NIKON D750"),
        ("Apple\0", " iPhone  14 \0\0", "Apple iPhone 14"),
        ("", "X100V", "X100V"),
        ("FUJIFILM", "", "FUJIFILM"),
        ("", "", None),
    ],
)
def test_camera_is_named_once(make, model, camera):
    assert (
        read_bytes(with_exif({}, main={ExifTags.Base.Make: make, ExifTags.Base.Model: model})).fields.get("camera")
        == camera
    )


def place(lat: tuple, lat_ref: object, lon: tuple, lon_ref: object) -> bytes:
    where = ExifTags.GPS
    return with_exif(
        {},
        {
            where.GPSLatitude: tuple(TiffImagePlugin.IFDRational(*n) if isinstance(n, tuple) else n for n in lat),
            where.GPSLatitudeRef: lat_ref,
            where.GPSLongitude: lon,
            where.GPSLongitudeRef: lon_ref,
        },
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (place((48, 8, 14), "N", (11, 34, 32), "E"), (48.137222, 11.575556)),
        (place((33, 51, 25), "S", (151, 12, 36), "W"), (-33.856944, -151.21)),
        (place((90, 0, 0), "N", (180, 0, 0), "E"), (90.0, 180.0)),
        (place((90, 0, 1), "N", (11, 0, 0), "E"), (None, None)),
        (place((48, 0, 0), "N", (180, 0, 1), "E"), (None, None)),
        (place((4_000_000_000, 0, 0), "N", (11, 0, 0), "E"), (None, None)),
        (place(((48, 0), 0, 0), "N", (11, 0, 0), "E"), (None, None)),
        (place((48, 0, 0), "X", (11, 0, 0), "E"), (None, None)),
        (place((48, 0, 0), "", (11, 0, 0), "E"), (None, None)),
        (place((0, 0, 0), "N", (0, 0, 0), "E"), (None, None)),
    ],
)
def test_invalid_coordinates_are_not_a_place(data, expected):
    photo = read_bytes(data)
    assert values(photo, "lat", "lon") == expected


@pytest.mark.ci
def test_maker_note_of_200_mb_hides_no_other_tag(tmp_path):
    """In a TIFF file a note may be as long as it says."""
    size, time = 200 * 2**20, b"2024:05:01 12:34:56\0"
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Canon"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2000:01:01 00:00:00"
    data = encode_image(COLOURS, "tiff", exif=exif.tobytes())
    pointer = data.index(struct.pack("<HHI", ExifTags.IFD.Exif, 4, 1)) + 8
    end = len(data)
    tags = struct.pack("<HHHII", 2, ExifTags.Base.DateTimeOriginal, 2, len(time), end + 30)
    tags += struct.pack("<HHII", ExifTags.Base.MakerNote, 7, size, end + 30 + len(time)) + bytes(4)
    path = tmp_path / "a.tif"
    path.write_bytes(data[:pointer] + struct.pack("<I", end) + data[pointer + 4 :] + tags + time)
    with path.open("r+b") as file:
        file.truncate(end + 50 + size)
    photo = read_photo(ImageFile(str(path)))
    assert values(photo, "taken", "camera") == ("2024-05-01T12:34:56", "Canon")


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_invalid_exif_is_ignored(kind):
    assert read_bytes(encode_image(COLOURS, kind, exif=b"Exif\0\0garbage that is no TIFF header")) == Photo()


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"RIFF....WEBP", b"...."]
)
def test_invalid_image_has_no_metadata(data):
    assert read_bytes(data) == Photo()


# --- XMP

HEAD = "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
END = "</rdf:RDF></x:xmpmeta>"


def described(inner: str) -> str:
    spaces = "xmlns:dc='http://purl.org/dc/elements/1.1/' xmlns:exif='http://ns.adobe.com/exif/1.0/'"
    return f"{HEAD}<rdf:Description rdf:about='' {spaces}>{inner}</rdf:Description>{END}"


BOMB = (
    "<!DOCTYPE x [<!ENTITY a0 'ha'>"
    + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10))
    + "]>"
    + described("<dc:title>&a9;</dc:title>")
)
BAD_XMP = {
    "no XML": "<x:xmpmeta",
    "text": "keywords: cat",
    "entity bomb": BOMB,
    "a file of the system": "<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>"
    + described("<dc:title>&a;</dc:title>"),
    "deep": "<a>" * 50_000 + "</a>" * 50_000,
    "another root": "<html><RDF/></html>",
    "nothing": "",
    "empty": described(""),
    "empty bag": described("<dc:subject><rdf:Bag/></dc:subject>"),
    "odd types": described("<dc:subject>cat</dc:subject><exif:GPSLatitude><rdf:Bag/></exif:GPSLatitude>").replace(
        "cat", ""
    ),
}


@pytest.mark.parametrize("name", BAD_XMP)
def test_corrupt_or_hostile_xmp_is_ignored(tmp_path, name):
    xmp = BAD_XMP[name].encode()
    (tmp_path / "a.jpg").write_bytes(encode_image(COLOURS, "jpeg", **({"xmp": xmp} if len(xmp) < 60_000 else {})))
    (tmp_path / "a.xmp").write_bytes(xmp)
    photo = read(tmp_path / "a.jpg")
    assert photo == Photo(sidecars=photo.sidecars)
    assert photo.sidecars


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_xmp_file_of_another_kind_or_size_is_passed_by(tmp_path, make):
    (tmp_path / "a.jpg").write_bytes(encode_image(COLOURS, "jpeg"))
    make(tmp_path / "a.xmp")
    with (tmp_path / "a.jpg.xmp").open("wb") as file:
        file.truncate(2**30)
    assert read(tmp_path / "a.jpg").keywords == ()


@needs_xml
@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (
            "<exif:DateTimeOriginal>2024-05-01T12:34:56.7+02:00</exif:DateTimeOriginal>",
            {"taken": "2024-05-01T12:34:56"},
        ),
        ("<exif:DateTimeOriginal>2024-05-01T12:34</exif:DateTimeOriginal>", {"taken": "2024-05-01T12:34:00"}),
        ("<exif:DateTimeOriginal>2024-05-01</exif:DateTimeOriginal>", {"taken": "2024-05-01"}),
        ("<exif:DateTimeOriginal>0000-00-00T00:00:00</exif:DateTimeOriginal>", {}),
        ("<exif:DateTimeOriginal>2024</exif:DateTimeOriginal>", {}),
        (
            "<exif:GPSLatitude>48,8,14N</exif:GPSLatitude><exif:GPSLongitude>11,34.5333W</exif:GPSLongitude>",
            {"lat": 48.137222, "lon": -11.575555},
        ),
        ("<exif:GPSLatitude>98,8,14N</exif:GPSLatitude><exif:GPSLongitude>11,34.5W</exif:GPSLongitude>", {}),
        ("<exif:GPSLatitude>48</exif:GPSLatitude><exif:GPSLongitude>nanE</exif:GPSLongitude>", {}),
        (
            "<dc:subject><rdf:Bag><rdf:li>cat</rdf:li><rdf:li> cat \n</rdf:li><rdf:li/></rdf:Bag></dc:subject>",
            {"keywords": ("cat",)},
        ),
    ],
)
def test_values_of_xmp_are_read_or_left_out(tmp_path, inner, expected):
    (tmp_path / "a.jpg").write_bytes(encode_image(COLOURS, "jpeg", xmp=described(inner).encode()))
    assert read(tmp_path / "a.jpg") == photo_of(**expected)


@needs_xml
def test_keywords_are_cut_to_a_size_that_an_index_can_hold():
    many = "".join(f"<rdf:li>{number} {'x' * 5000}</rdf:li>" for number in range(2000))
    carrier = io.BytesIO()
    COLOURS.save(carrier, "WEBP", xmp=described(f"<dc:subject><rdf:Bag>{many}</rdf:Bag></dc:subject>").encode())
    photo = read_bytes(carrier.getvalue())
    assert len(photo.keywords) == 200
    assert max(map(len, photo.keywords)) <= 500
