"""Table of the fields by which the images of a library can be filtered, and which are displayed with their captions.

`photo.py` reads the fields whose source is the image file. The fields whose source is the model are stored together
with its caption. Other modules refer to the fields through this table. The columns of users' tables are also fields:
they differ between libraries, and take precedence over fields of the same name in this module. The help of `search`
lists the fields, so this module must not import anything that takes long to load.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

Kind = Literal["text", "number"]
FieldValue = str | int | float


@dataclass(frozen=True)
class Field:
    """Field that images may have.

    Attributes:
        source: Where the value comes from: `index` (known for every image, and stored in its own column), `file` (read
            from the image file), or `model` (estimated by the model).
        is_several: Whether an image can have several values. A filter is then true if it is true for at least one of
            them.
        is_date: Whether the values are times, written as texts such as `2026-03-01T12:00:00`.
        is_facet: Whether web pages offer the field as a filter.
        is_private: Whether exported sites, which may be public, exclude the field.
        stored_as: Name of the field in stores, if it differs from `name`.
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
        # absolute path, or location in a shard or table
        Field("path", "text", "index", is_facet=False, stored_as="name"),
        Field("title", "text", "index", is_facet=False),  # name of the file without its suffix
        Field("caption", "text", "index", is_facet=False),
        Field("keywords", "text", "file", is_several=True),
        Field("folder", "text", "index"),  # name of the folder
        Field("date", "text", "index", is_date=True),  # modification time of the file in UTC
        Field("taken", "text", "file", is_date=True),  # time by the camera's clock
        Field("camera", "text", "file"),
        Field("lens", "text", "file"),
        Field("lat", "number", "file", is_private=True),  # latitude in degrees, positive in the north
        Field("lon", "number", "file", is_private=True),  # longitude in degrees, positive in the east
        Field("headline", "text", "file", is_facet=False, stored_as="title"),  # title in the user metadata
        Field("confidence", "number", "model"),  # probability that the caption is exactly right
        Field("unfamiliar", "text", "model"),  # whether the image is unlike the training images: yes or no
        # words that the model assigns to the image, besides the caption
        Field("tags", "text", "model", is_several=True),
        Field("size", "number", "index"),  # size in bytes
        Field("width", "number", "index"),  # size in pixels, after EXIF rotation
        Field("height", "number", "index"),
    )
}
"""All fields by name, in display order."""


def names_of(source: Literal["index", "file", "model"]) -> tuple[str, ...]:
    """Return the names of the fields whose values come from the given source."""
    return tuple(name for name, field in FIELDS.items() if field.source == source)


MULTI_VALUED_FIELDS = tuple(name for name, field in FIELDS.items() if field.is_several)
"""Multi-valued fields."""
OWN_FIELDS = frozenset(names_of("index"))
"""Fields that every image has."""
COLUMNS = {**{name: FIELDS[name].key for name in names_of("index")}, "root": "root", "digest": "digest"}
"""Fields that have their own column in every store, with the names of these columns. `root` and `digest` are attributes
of `Entry`, and are not in `FIELDS`."""
PHOTO_FIELDS = {name: FIELDS[name].key for name in names_of("file") if name not in MULTI_VALUED_FIELDS}
"""Single-valued fields that are read from image files, with their names in stores."""
READER_VERSION = 1
"""Version of the data that an update reads from image files in addition to the model's output: metadata, hashes and
small copies. If the version has changed, the next update reads these data again for all images."""
