"""Detect the image and caption columns of tables."""

from collections.abc import Sequence

from grr_coca.common.errors import UserError

IMAGE_COLUMNS = (
    "image_path", "image", "img_path", "img", "image_file", "image_filename", "image_name",
    "filepath", "file_path", "file_name", "filename", "file", "path", "name", "image_id", "id",
    "key", "slide", "slide_id", "case_id",
)  # fmt: skip
CAPTION_COLUMNS = (
    "caption", "captions", "text", "txt", "title", "description", "comment", "sentence", "sentences", "report",
    "findings", "impression",
)  # fmt: skip
"""Common names of image and caption columns, in order of priority. Case, spaces and dashes are ignored."""


def find_columns(
    names: Sequence[str], listing: str, needs_captions: bool = True, image: str | None = None
) -> tuple[str, str | None]:
    """Return the names of the image column and the caption column of a table.

    Args:
        names: All columns.
        listing: Name of the table in messages.
        needs_captions: Whether a caption column is needed. If False, the second result is None.
        image: Name of the image column, if known. If None, a column of image paths is searched for.

    Raises:
        UserError: If several columns have the name of one of the results, or a column is missing. In the latter case,
            the message lists the table's first columns, or advises how to convert a table of URLs.
    """
    plain = {_plain(name): name for name in reversed(names)}
    image = image or next((plain[name] for name in IMAGE_COLUMNS if name in plain), None)
    caption = next((plain[name] for name in CAPTION_COLUMNS if name in plain), None) if needs_captions else None
    if image is not None and (caption is not None or not needs_captions):
        for name in filter(None, (image, caption)):
            if names.count(name) > 1:
                raise UserError(f"{listing}: several columns are named '{name}'; rename all but one")
        return image, caption
    if image is None and "url" in plain:
        raise UserError(
            f"{listing}: contains URLs, which are not downloaded; first convert the table to shards with img2dataset"
        )
    what, usual = ("the image's path", IMAGE_COLUMNS) if image is None else ("the caption", CAPTION_COLUMNS)
    found = ", ".join(map(str, names[:20])) or "none"
    raise UserError(
        f"{listing}: no column of {what} (found {found}); name the column {', '.join(usual[:-1])} or {usual[-1]}"
    )


def first_column(names: Sequence[str], usual: Sequence[str]) -> int | None:
    """Return the index of a column with one of the usual names, or None if no column has such a name.

    If several columns have such names, the name that comes first in `usual` takes precedence.
    """
    plain = [_plain(name) for name in names]
    return next((plain.index(name) for name in usual if name in plain), None)


def as_captions(value: object) -> tuple[str, ...]:
    """Convert a cell of a table to captions. The cell may contain a text or a list of texts.

    Other values, and items of a list that are not texts, yield no captions.
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        return tuple(text for text in value if isinstance(text, str))
    return ()


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
