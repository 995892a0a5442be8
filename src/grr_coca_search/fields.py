"""The table of fields for filtering the images of a library and for showing information beyond their captions.

A field of a file is read by `photo.py`, and a field of the model is stored with its caption; no other file names them.
Table columns are also fields: each library has its own, and they take precedence over fields of the same name here. The
help of `search` names the fields, so this file imports nothing that takes time.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

Kind = Literal["text", "number"]
FieldValue = str | int | float


@dataclass(frozen=True)
class Field:
    """A field of images.

    Attributes:
        source: `index`: known for every image, with a column; `file`: read from the file; `model`: estimated by the
            model.
        is_several: Whether an image has several values; a filter is true if it is true for one of them.
        is_date: Whether its texts are times, such as `2026-03-01T12:00:00`.
        is_facet: Whether pages offer it as a filter.
        is_private: Whether exported sites, which may be public, exclude it.
        stored_as: Name in stores, if different.
    """

    name: str
    kind: Kind
    source: Literal["index", "file", "model"]
    _: KW_ONLY
    is_several: bool = False
    is_date: bool = False
    is_facet: bool = True
    is_private: bool = False
    stored_as: str = ""

    @property
    def key(self) -> str:
        """Name of the field in stores."""
        return self.stored_as or self.name


FIELDS = {
    field.name: field
    for field in (
        Field("path", "text", "index", is_facet=False, stored_as="name"),  # absolute, or a location in a shard or table
        Field("title", "text", "index", is_facet=False),  # the name of the file without its suffix
        Field("caption", "text", "index", is_facet=False),
        Field("keywords", "text", "file", is_several=True),
        Field("folder", "text", "index"),  # its name
        Field("date", "text", "index", is_date=True),  # modification time of the file, in UTC
        Field("taken", "text", "file", is_date=True),  # by the clock of the camera
        Field("camera", "text", "file"),
        Field("lens", "text", "file"),
        Field("lat", "number", "file", is_private=True),  # degrees, positive in the north
        Field("lon", "number", "file", is_private=True),  # degrees, positive in the east
        Field("headline", "text", "file", is_facet=False, stored_as="title"),  # the title in the user metadata
        Field("confidence", "number", "model"),  # the probability that the caption is exactly right
        Field("unfamiliar", "text", "model"),  # unlike the images that the model was trained on: yes or no
        Field("tags", "text", "model", is_several=True),  # words that the model assigns to it, besides the caption
        Field("size", "number", "index"),  # bytes
        Field("width", "number", "index"),  # pixels, after EXIF rotation
        Field("height", "number", "index"),
    )
}
"""All fields by name, in display order."""


def names_of(source: Literal["index", "file", "model"]) -> tuple[str, ...]:
    """Return the names of the fields from one source."""
    return tuple(name for name, field in FIELDS.items() if field.source == source)


SEVERAL = tuple(name for name, field in FIELDS.items() if field.is_several)
"""The multi-valued fields."""
OWN_FIELDS = frozenset(names_of("index"))
"""The fields that every image has."""
COLUMNS = {**{name: FIELDS[name].key for name in names_of("index")}, "root": "root", "digest": "digest"}
"""Fields with a column in each store, by column name. An `Entry` also has root and digest."""
PHOTO_FIELDS = {name: FIELDS[name].key for name in names_of("file") if name not in SEVERAL}
"""The fields that are read from a file and have one value, with their names in stores."""
READER = 1
"""Version of the metadata that is read next to the model's output. With a new version, index updates read metadata,
hashes and small copies of all images again."""
