"""CSV files of paths and labels."""

import csv
from collections.abc import Sequence
from pathlib import Path

from grr_coca.data.images import has_image_suffix
from grr_coca.data.sources.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, first_column
from grr_coca.errors import UserError

LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", *CAPTION_COLUMNS)

Row = list[str]


def read_label_table(path: Path) -> list[tuple[Path, str]]:
    """The image and the label of each row.

    A first row of column names tells which columns these are. Without one, there are two columns, in either order.

    Raises:
        UserError: it cannot be read, or does not tell its columns; names the row.
    """
    rows = _read(path)
    named = _named_columns(rows[0], path) if rows else None
    width = 2 if named is None else len(rows[0])
    for number, row in enumerate(rows, start=1):
        _check(row, number, width, path, has_names=named is not None)
    if named is None:
        image, label = _unnamed_columns(rows, path)
    else:
        (image, label), rows = named, rows[1:]
    return [(path.parent / row[image], " ".join(row[label].split())) for row in rows]


def _read(path: Path) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [row for row in csv.reader(file) if row]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file that can be read ({error})") from error


def _named_columns(first: Row, path: Path) -> tuple[int, int] | None:
    """The columns of paths and of labels, if the first row holds names of columns. One of two may have any name."""
    if any(_names_image(cell, path) for cell in first):
        return None
    image, label = first_column(first, IMAGE_COLUMNS), first_column(first, LABEL_COLUMNS)
    if image is not None and label is not None:
        return image, label
    if len(first) != 2:
        return None
    if image is not None:
        return image, 1 - image
    return None if label is None else (1 - label, label)


def _unnamed_columns(rows: Sequence[Row], path: Path) -> tuple[int, int]:
    labels_first = bool(rows) and _names_image(rows[0][1], path) and not _names_image(rows[0][0], path)
    return (1, 0) if labels_first else (0, 1)


def _check(row: Row, number: int, width: int, path: Path, has_names: bool) -> None:
    if len(row) < width:
        raise UserError(f"{path}, row {number}: expected the path of an image and its label")
    if len(row) > width:
        or_names = "" if has_names else ", or begin with a row such as path,label"
        raise UserError(
            f"{path}, row {number}: {len(row)} columns, where {width} are expected; put a cell with a comma in "
            f"quotes{or_names}"
        )


def _names_image(cell: str, table: Path) -> bool:
    try:
        return has_image_suffix(cell) or (table.parent / cell).is_file()
    except (OSError, ValueError):  # longer than a name of a file may be, or with a null byte
        return False
