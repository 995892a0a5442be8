"""Parquet tables. The columns of paths and captions are kept in memory, in Arrow's compact form."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from grr_coca.data.bad import BadSample, Cause
from grr_coca.data.sources.columns import as_captions, find_columns
from grr_coca.data.sources.listed import ListedPairs, ListedRow, first_paths
from grr_coca.data.sources.located import locate_images
from grr_coca.errors import UserError
from grr_coca.extras import require_extra


class ParquetRows:
    """Rows of two Arrow columns, or of that of the images alone. The others are read when they are first asked for."""

    def __init__(self, path: Path, images: Any, captions: Any, others: Sequence[str]) -> None:
        self._path = path
        self._others = others
        self._images = images
        self._captions = captions

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> ListedRow:
        """One row."""
        try:
            image = self._images[index].as_py()
            caption = None if self._captions is None else self._captions[index].as_py()
        except UnicodeDecodeError as error:
            message = f"{self._path}: row {index + 1}: not UTF-8 text ({error})"
            raise BadSample(message, Cause.BAD_TEXT) from error
        return ListedRow(image if isinstance(image, str) else "", as_captions(caption))

    def fields(self, index: int) -> Mapping[str, object]:
        """The other columns of a row by name, but for cells that Python has no value for."""
        cells = ((name, _value(column[index])) for name, column in self._columns.items())
        return {name: value for name, value in cells if value is not None}

    @cached_property
    def _columns(self) -> dict[str, Any]:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(self._path, columns=list(self._others))
        return {name: table[name] for name in self._others}


def _value(cell: Any) -> object:
    """What a cell holds; None if nothing does: a date of the year 100,000, or text that is not UTF-8."""
    import pyarrow

    try:
        return cell.as_py()
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return None


def open_parquet(path: Path, needs_captions: bool = True) -> ListedPairs:
    """A Parquet table of paths and captions. A caption cell holds a text or a list of texts.

    Raises:
        UserError: pyarrow is not installed, the file is broken, a column is missing, or the table holds the images
            themselves.
    """
    require_extra("parquet", f"{path}: reading Parquet")
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = Counter(file.schema_arrow.names)
        image, caption = find_columns(list(names), str(path), needs_captions)
        for name in filter(None, (image, caption)):
            if names[name] > 1:
                raise UserError(f"{path}: has several columns '{name}'; rename all but one")
        kind = file.schema_arrow.field(image).type
        if pyarrow.types.is_struct(kind) or pyarrow.types.is_binary(kind):  # as in data sets of Hugging Face
            raise UserError(f"{path}: '{image}' holds images, not paths; save them as files, and list these instead")
        table = file.read([image] if caption is None else [image, caption])
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({error})") from error
    others = [name for name, count in names.items() if name != image and count == 1]
    rows = ParquetRows(path, table[image], None if caption is None else table[caption], others)
    return ListedPairs(path, rows, locate_images(path, first_paths(rows), [path.parent, path.parent / "images"]))
