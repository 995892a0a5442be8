"""Read metadata from an image file or from the content of an XMP file: time, camera, location, title and keywords.

Files are never written. Values that are corrupt or out of range are ignored, because they do not affect the image.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, cast

from PIL import ExifTags, Image, IptcImagePlugin
from PIL.ImageFile import ImageFile as OpenedFile

from grr_coca.data.images import ignore_pillow_warnings, open_header

ImageMetadata = Mapping[str, Any]
"""EXIF, XMP or IPTC data: the values of fields by name, and `keywords`. A value is None if it is unknown."""

MAX_METADATA_BYTES = 2**22
"""Maximum size of metadata. Some programs store entire images in metadata, and a malicious file may declare any size.
"""
_MAX_TEXT = 500


_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*")


def read_image_metadata(data: bytes, name: str) -> list[ImageMetadata]:
    """Return the EXIF, XMP and IPTC metadata in an image file, in this order. Subprocesses call this function.

    The list is empty if the format of the file has no such metadata, or the file is corrupt. Earlier entries take
    precedence over later ones, because EXIF data come from cameras, whereas programs write XMP and IPTC.
    """
    is_webp_with_metadata = data[8:16] == b"WEBPVP8X"
    if not data.startswith(_STARTS) and not is_webp_with_metadata and data[4:8] != b"ftyp":
        return []  # other formats have no such metadata
    ignore_pillow_warnings()
    try:
        image = open_header(data, name)
    except Exception:  # corrupt files raise many types of errors; decoding reports the error
        return []
    return [_read_exif(image), _xmp(image), _read_iptc(image)]


# --- EXIF


def _read_exif(image: Image.Image) -> ImageMetadata:
    # Each part is read separately, so that the other parts are read even if one is corrupt.
    main = _tags(image, None)
    photo_tags, gps_tags = _tags(image, ExifTags.IFD.Exif), _tags(image, ExifTags.IFD.GPSInfo)
    tag, where = ExifTags.Base, ExifTags.GPS
    lat = _degrees(gps_tags.get(where.GPSLatitude), gps_tags.get(where.GPSLatitudeRef), 90)
    lon = _degrees(gps_tags.get(where.GPSLongitude), gps_tags.get(where.GPSLongitudeRef), 180)
    return {
        "taken": _exif_time(photo_tags.get(tag.DateTimeOriginal)) or _exif_time(photo_tags.get(tag.DateTimeDigitized)),
        "camera": _camera(main.get(tag.Make), main.get(tag.Model)),
        "lens": one_line(photo_tags.get(tag.LensModel)),
        **_coordinates(lat, lon),
    }


def _tags(image: Image.Image, ifd: ExifTags.IFD | None) -> dict[int, Any]:
    try:
        if len(image.info.get("exif", b"")) > MAX_METADATA_BYTES:
            return {}
        exif = image.getexif()
        return dict(exif) if ifd is None else dict(exif.get_ifd(ifd))
    except Exception:  # corrupt EXIF data raise many types of errors
        return {}


def _exif_time(value: object) -> str | None:
    """Convert an EXIF time such as `2026:03:01 12:00:00` to ISO 8601.

    The result is None if the value is invalid, for example if it consists of zeros or spaces, which cameras without a
    clock write.
    """
    try:
        return datetime.strptime(str(value).strip("\0 ")[:19], "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return None


def _camera(make: object, model: object) -> str | None:
    """Return the maker and model of a camera, such as `FUJIFILM X100V`, or None if both are unknown.

    If the name of the model already starts with the maker, as many do, the maker is not repeated.
    """
    maker, name = one_line(make), one_line(model)
    if not maker or not name:
        return name or maker
    return name if name.lower().startswith(maker.split()[0].lower()) else f"{maker} {name}"


def _degrees(parts: object, reference: object, limit: float) -> float | None:
    """Convert up to three numbers (degrees, minutes and seconds) to degrees, which are negative for `S` and `W`.

    Args:
        parts: A number, or a list of numbers.
        reference: Direction: `N`, `S`, `E` or `W`.
        limit: Maximum of the result.

    Returns:
        The degrees, or None if a value is invalid or out of range.
    """
    try:
        numbers = [float(part) for part in (parts if isinstance(parts, tuple | list) else (parts,))]  # type: ignore[arg-type]
        sign = {"N": 1, "E": 1, "S": -1, "W": -1}[str(reference).strip("\0 ").upper()[:1]]
    except (TypeError, ValueError, KeyError, ZeroDivisionError):
        return None
    degrees = sum(number / 60**place for place, number in enumerate(numbers[:3]))
    return sign * round(degrees, 6) if all(n >= 0 for n in numbers) and degrees <= limit else None  # also false for NaN


def _coordinates(lat: float | None, lon: float | None) -> dict[str, float]:
    """Return both coordinates as fields.

    The result is empty if a coordinate is unknown, or if both are zero, which cameras without a position write.
    """
    return {} if lat is None or lon is None or lat == lon == 0 else {"lat": lat, "lon": lon}


# --- XMP


def read_xmp(content: bytes) -> ImageMetadata:
    """Return the metadata in the content of an XMP file. If the content is invalid, all values are None or empty."""
    carrier = Image.new("1", (1, 1))
    carrier.info["xmp"] = content.removeprefix(b"\xef\xbb\xbf")
    return _xmp(carrier)


def _xmp(image: Image.Image) -> ImageMetadata:
    xmp = _properties(image)
    paths = [
        path.split("|") for path in _texts(xmp.get("hierarchicalSubject"))
    ]  # form that Lightroom writes, such as `animals|cat`
    paths += [path.split("/") for path in _texts(xmp.get("TagsList"))]  # form that digiKam writes
    return {
        "taken": _xmp_time(xmp.get("DateTimeOriginal")) or _xmp_time(xmp.get("DateCreated")),
        "camera": _camera(xmp.get("Make"), xmp.get("Model")),
        "lens": one_line(xmp.get("LensModel")) or one_line(xmp.get("Lens")),
        "headline": next(filter(None, map(one_line, _texts(xmp.get("title")))), None),
        "keywords": [*_texts(xmp.get("subject")), *(part for path in paths for part in path)],
        **_coordinates(_xmp_degrees(xmp.get("GPSLatitude"), 90), _xmp_degrees(xmp.get("GPSLongitude"), 180)),
    }


def _properties(image: Image.Image) -> dict[str, Any]:
    """Return the properties of all `Description` elements, by their names without namespaces."""
    try:
        found = image.getxmp()
    except Exception:  # the data are not XML, have entities, or are nested too deeply
        return {}
    rdf = found.get("xmpmeta", found)
    rdf = rdf.get("RDF", {}) if isinstance(rdf, dict) else {}
    described = rdf.get("Description", []) if isinstance(rdf, dict) else []
    properties: dict[str, Any] = {}
    for one in described if isinstance(described, list) else [described]:
        if isinstance(one, dict):
            properties |= one
    return properties


_XMP_TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?|$)")


def _xmp_time(value: object) -> str | None:
    """Parse an XMP time such as `2026-03-01T12:00:00+01:00`, or a date without a time.

    The result has the same form, without fractions of seconds and the time zone. It is None if the value is invalid.
    """
    match = _XMP_TIME.match(value) if isinstance(value, str) else None
    if match is None:
        return None
    day, minutes, seconds = match.groups()
    written = f"{day}T{minutes}{seconds or ':00'}" if minutes else day
    try:
        datetime.fromisoformat(written)
    except ValueError:
        return None
    return written


def _xmp_degrees(value: object, limit: float) -> float | None:
    """Convert XMP notation, such as `48,12.5N` or `48,12,30N`, to degrees. Return None if the value is invalid."""
    if not isinstance(value, str) or not value:
        return None
    return _degrees(value[:-1].split(","), value[-1], limit)


def _texts(value: object) -> Iterator[str]:
    """Yield the texts of a property: a single text, a list (`Bag`, `Seq`), or one text in several languages (`Alt`).

    Of several languages, the default language comes first.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in sorted(value, key=lambda one: not isinstance(one, dict) or one.get("lang") != "x-default"):
            yield from _texts(one)
    elif isinstance(value, dict):
        for key in ("text", "Bag", "Seq", "Alt", "li"):
            yield from _texts(value.get(key))


# --- IPTC

_UTF8 = b"\x1b%G"
_CHARACTERS, _TITLE, _KEYWORDS, _DAY = (1, 90), (2, 5), (2, 25), (2, 55)


def _read_iptc(image: Image.Image) -> ImageMetadata:
    try:
        found = IptcImagePlugin.getiptcinfo(cast(OpenedFile, image)) or {}
    except Exception:  # corrupt data raise many types of errors
        return {}

    def texts(key: tuple[int, int]) -> list[str]:
        values = found.get(key, [])
        return [
            _decode_iptc(value, found.get(_CHARACTERS)) for value in (values if isinstance(values, list) else [values])
        ]

    day = next(iter(texts(_DAY)), "")
    return {
        "taken": _xmp_time(f"{day[:4]}-{day[4:6]}-{day[6:8]}"),
        "headline": next(filter(None, map(one_line, texts(_TITLE))), None),
        "keywords": texts(_KEYWORDS),
    }


def _decode_iptc(value: bytes | None, characters: object) -> str:
    try:
        return (value or b"").decode("utf-8")
    except UnicodeDecodeError:
        return (value or b"").decode("utf-8" if characters == _UTF8 else "latin-1", "replace")


# --- Texts


def one_line(value: object) -> str | None:
    """Return a text as a single line of at most `_MAX_TEXT` characters, without null characters and surplus spaces.

    Return None if the text is empty, or if the value is not a text.
    """
    if not isinstance(value, str):
        return None
    return " ".join(value.replace("\0", " ").split())[:_MAX_TEXT].strip() or None
