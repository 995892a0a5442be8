"""Finds the columns of a table that hold the paths of images and the captions."""

from collections.abc import Sequence

from grr_coca.errors import UserError

IMAGE_COLUMNS = (
    "image_path", "image", "img_path", "img", "image_file", "image_filename", "image_name",
    "filepath", "file_path", "file_name", "filename", "file", "path", "name", "image_id", "id",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "title", "description", "comment", "sentence", "sentences")
"""Common names of the two columns, the surest first. Case, spaces and dashes do not matter."""


def find_columns(names: Sequence[str], listing: str, needs_captions: bool = True) -> tuple[str, str | None]:
    """The names of the column of paths and of the column of captions, None if there is none and none is needed.

    Raises:
        UserError: one that is needed is missing; the message lists the columns of the table.
    """
    plain = {_plain(name): name for name in reversed(names)}
    image = next((plain[name] for name in IMAGE_COLUMNS if name in plain), None)
    caption = next((plain[name] for name in CAPTION_COLUMNS if name in plain), None)
    if image is not None and (caption is not None or not needs_captions):
        return image, caption
    if image is None and "url" in plain:
        raise UserError(f"{listing}: holds URLs, and nothing is fetched; make shards of it with img2dataset first")
    what, usual = ("the image's path", IMAGE_COLUMNS) if image is None else ("the caption", CAPTION_COLUMNS)
    found = ", ".join(map(str, names[:20])) or "none"
    raise UserError(f"{listing}: no column of {what}; found {found}; expected one of {', '.join(usual)}")


def first_column(names: Sequence[str], usual: Sequence[str]) -> int | None:
    """The number of the column with the surest of the usual names, None if there is none."""
    plain = [_plain(name) for name in names]
    return next((plain.index(name) for name in usual if name in plain), None)


def as_captions(value: object) -> tuple[str, ...]:
    """The captions in a cell, which holds a text, a list of texts, or neither (no captions)."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        return tuple(text for text in value if isinstance(text, str))
    return ()


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
