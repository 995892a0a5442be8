"""Files of captions that grow row by row, so that an interrupted job can continue."""

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TextIO

from grr_coca.cli.output.say import to_json
from grr_coca.cli.output.writing import disk_errors, require_suffix, require_writable, write_output
from grr_coca.errors import UserError


class CaptionRow(NamedTuple):
    """One caption of an image. `log_prob`: natural logarithm of the probability of the whole caption."""

    image: str
    caption: str
    log_prob: float


class RowFile:
    """A file of `CaptionRow`s: JSON lines or CSV, by its suffix.

    If the file exists, `done` holds the images that have all their captions in it. With the first new rows, a line that
    was cut off is removed, and so are the rows of those `images` that lack some of their captions. Rows of other images
    stay as they are.

    Raises:
        UserError: the suffix is not that of a format, the file holds something else, or it cannot be written to.
    """

    def __init__(self, path: Path, rows_per_image: int, images: Collection[str]) -> None:
        self.path = path
        self._is_csv = require_suffix(path, (".jsonl", ".csv")) == ".csv"
        require_writable(path)
        self._file: TextIO | None = None
        with disk_errors(path):
            counts = Counter(row.image for row in self._rows()) if path.exists() else Counter()
            self.done = {image for image, count in counts.items() if count >= rows_per_image}
            self._incomplete = (counts.keys() - self.done) & set(images)

    def append(self, rows: Sequence[CaptionRow]) -> None:
        """Add rows, and flush them at once."""
        with disk_errors(self.path):
            if self._file is None:
                self._file = self._opened()
            self._file.write("".join(self._line(row) for row in rows))
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with disk_errors(self.path):
            if self._file is not None:
                self._file.close()

    def _opened(self) -> TextIO:
        """The file to add rows to. What is there stays as it is until there are some: nothing may come of the work."""
        if self.path.exists() and (self._incomplete or _is_torn(self.path)):
            write_output(self.path, self._write_complete)
        file = self.path.open("a", encoding="utf-8", errors="surrogateescape", newline="")
        if self._is_csv and self.path.stat().st_size == 0:
            file.write(_csv_line(CaptionRow._fields))
        return file

    def _line(self, row: CaptionRow) -> str:
        return _csv_line(row) if self._is_csv else to_json(row._asdict()) + "\n"

    def _write_complete(self, file: IO[bytes]) -> None:
        if self._is_csv:
            file.write(_csv_line(CaptionRow._fields).encode())
        for row in self._rows():
            if row.image not in self._incomplete:
                file.write(self._line(row).encode("utf-8", "surrogateescape"))

    def _rows(self) -> Iterator[CaptionRow]:
        """The rows of the file. A last row that was cut off is left out."""
        with self.path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            whole = (line for line in file if line.endswith("\n"))
            for number, record in enumerate(self._records(whole), 1):
                try:
                    yield CaptionRow(str(record["image"]), str(record["caption"]), float(record["log_prob"]))  # type: ignore[arg-type]
                except (KeyError, TypeError, ValueError) as error:
                    raise self._not_ours(f"row {number}") from error

    def _records(self, lines: Iterable[str]) -> Iterator[dict[str, object]]:
        if self._is_csv:
            reader = csv.DictReader(lines)
            if reader.fieldnames is not None and tuple(reader.fieldnames) != CaptionRow._fields:
                raise self._not_ours("its first line")
            yield from reader
            return
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise self._not_ours(f"row {number}") from error

    def _not_ours(self, place: str) -> UserError:
        columns = ", ".join(CaptionRow._fields)
        return UserError(f"{self.path}: {place} is not {columns}, so captions are not added to it; use another file")


def _is_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, io.SEEK_END) == 0:
            return False
        file.seek(-1, io.SEEK_END)
        return file.read() != b"\n"


def _csv_line(values: Sequence[object]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\r\n").writerow(values)  # both characters of it are quoted within values
    return buffer.getvalue().removesuffix("\r\n") + "\n"
