"""Combine the metadata in an image file, which a subprocess reads, with the metadata in the XMP files next to it."""

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from grr_coca.common.files import open_regular
from grr_coca.data.image_files import ImageFile
from grr_coca_search.entry import Photo
from grr_coca_search.fields import PHOTO_FIELDS, READER
from grr_coca_search.photo import MAX_METADATA_BYTES, Found, one_line, read_xmp

FACTS = "grr_coca_search.picture_facts"
"""Module that helper processes import to extract facts from images."""

_MAX_KEYWORDS = 200


def photo_of(file: ImageFile, inside: Sequence[Found]) -> Photo:
    """Return the metadata of an image file, and of the XMP files next to it.

    Args:
        file: The image.
        inside: Metadata that a helper process found in the image file.
    """
    # The state is recorded before the XMP files are read, so that a file that changes in between is read again later.
    sidecars = sidecar_state(file)
    beside = [] if sidecars == READER else list(map(_in_sidecar, sidecar_paths(file)))
    # The value of a field is from the first source that has the field. The keywords of all sources are kept.
    ranked = [*reversed(beside), *inside]
    known = {name: next((one[name] for one in ranked if one.get(name) is not None), None) for name in PHOTO_FIELDS}
    keywords = [word for one in (*inside, *beside) for word in one.get("keywords", ())]
    return Photo(
        fields={name: value for name, value in known.items() if value is not None},
        keywords=_unique([*keywords, *file.keywords]),
        sidecars=sidecars,
    )


# --- Sidecars


def sidecar_paths(file: ImageFile) -> list[str]:
    """Return the paths of the XMP files that may belong to an image: `NAME.xmp`, then `NAME.jpg.xmp`, which takes
    precedence.

    The list is empty if the image is not a separate file. Lightroom and Adobe Bridge write `NAME.xmp`; darktable and
    digiKam write `NAME.jpg.xmp`.
    """
    return [] if file.source is not None else [f"{os.path.splitext(file.name)[0]}.xmp", f"{file.name}.xmp"]  # noqa: PTH122


def sidecar_state(file: ImageFile) -> int:
    """Return a number that changes if an image's XMP file is created, changed or removed, or if `READER` changes."""
    found = []
    for place, path in enumerate(sidecar_paths(file)):
        try:
            status = os.stat(path)  # noqa: PTH116 (each update does this for each image)
        except (OSError, ValueError):
            continue
        found.append((place, status.st_size, status.st_mtime_ns))
    if not found:
        return READER
    return int.from_bytes(blake2b(repr((READER, found)).encode(), digest_size=7).digest())


def _in_sidecar(sidecar: str) -> Found:
    try:
        with open_regular(Path(sidecar)) as file:
            if os.fstat(file.fileno()).st_size > MAX_METADATA_BYTES:
                return {}
            return read_xmp(file.read())
    except (OSError, ValueError):
        return {}


def _unique(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, map(one_line, texts))))[:_MAX_KEYWORDS]
