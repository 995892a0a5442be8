"""The table of fields: by what the images of a library are filtered, and what is shown of them besides their captions.

A field of a file is read by `photo.py`, and one of the model comes with its caption; nothing else names them. Columns
of tables are fields too: each library has its own, and they count more than fields of the same name here. The help of
`search` names the fields, so this file imports nothing that takes time.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

Kind = Literal["text", "number"]
FieldValue = str | int | float


@dataclass(frozen=True)
class Field:
    """A field of images.

    Attributes:
        source: The index knows it of every image (and has a column for it); or it is read from the file, or the model
            says it.
        is_several: An image has several values, and a filter is true if it is true of one of them.
        is_date: Its texts are times, such as `2026-03-01T12:00:00`.
        is_facet: Pages offer it as a filter.
        is_private: a site, which may be public, leaves it out.
        stored_as: Its name in stores, if it has another one.
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
        Field("path", "text", "index", is_facet=False, stored_as="name"),  # absolute, or a place in a shard or table
        Field("title", "text", "index", is_facet=False),  # the name of the file without its suffix
        Field("caption", "text", "index", is_facet=False),
        Field("keywords", "text", "file", is_several=True),
        Field("folder", "text", "index"),  # its name
        Field("date", "text", "index", is_date=True),  # when the file was changed, in UTC
        Field("taken", "text", "file", is_date=True),  # by the clock of the camera
        Field("camera", "text", "file"),
        Field("lens", "text", "file"),
        Field("lat", "number", "file", is_private=True),  # degrees, positive in the north
        Field("lon", "number", "file", is_private=True),  # degrees, positive in the east
        Field("headline", "text", "file", is_facet=False, stored_as="title"),  # the title that people wrote
        Field("confidence", "number", "model"),  # the probability that the caption is exactly right
        Field("unfamiliar", "text", "model"),  # unlike the images that the model was trained on: yes or no
        Field("tags", "text", "model", is_several=True),  # words that the model gives it, besides the caption
        Field("size", "number", "index"),  # bytes
        Field("width", "number", "index"),  # pixels, after EXIF rotation
        Field("height", "number", "index"),
    )
}
"""All fields by name, in the order in which they are shown."""


def names_of(source: Literal["index", "file", "model"]) -> tuple[str, ...]:
    """Return the names of the fields of one source."""
    return tuple(name for name, field in FIELDS.items() if field.source == source)


SEVERAL = tuple(name for name, field in FIELDS.items() if field.is_several)
"""The fields of which an image has several values."""
OWN_FIELDS = frozenset(names_of("index"))
"""The fields of every image."""
COLUMNS = {**{name: FIELDS[name].key for name in names_of("index")}, "root": "root", "digest": "digest"}
"""Fields with a column in each store, by column name. An `Entry` also has root and digest."""
PHOTO_FIELDS = {name: FIELDS[name].key for name in names_of("file") if name not in SEVERAL}
"""The fields that are read from a file and have one value, with their names in stores."""
READER = 1
"""Version of the metadata that is read next to the model's output. A new one makes updates of an index read metadata,
hashes and small copies of all images again."""
