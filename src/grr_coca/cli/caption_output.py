"""The places that captions are written to: standard output, a file of rows, or a text file beside each image.

Files of captions that grow row by row, so that an interrupted job can continue.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol, Self, TextIO

from grr_coca.cli.output import disk_errors, require_suffix, require_writable, say, to_json, write_output
from grr_coca.data.image_files import ImageFile
from grr_coca.errors import UserError
from grr_coca.messages import on_one_line

if TYPE_CHECKING:
    from grr_coca.generate import Caption


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


class CaptionOutput(Protocol):
    """Takes the captions of one image after the other, as soon as they are generated."""

    @property
    def done(self) -> Collection[str]:
        """Names of the images that already have captions."""
        ...

    def write(self, image: ImageFile, captions: "Sequence[Caption]") -> None:
        """Write the captions of an image."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_output(
    out: Path | None, sidecar: bool, json: bool, images: Sequence[ImageFile], num_captions: int
) -> CaptionOutput:
    """The output for these flags.

    Raises:
        UserError: the flags ask for two outputs, or for one that does not work for these images.
    """
    asked = [name for name, is_asked in (("--out", out), ("--sidecar", sidecar), ("--json", json)) if is_asked]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} are different places for captions; give one of them")
    if out is not None:
        return RowOutput(out, num_captions, images)
    return Sidecars(images) if sidecar else CaptionLines(json)


class _NothingToClose:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class CaptionLines(_NothingToClose):
    """One line for each caption on standard output: image, tab, caption; or JSON."""

    done = frozenset[str]()

    def __init__(self, json: bool) -> None:
        self._json = json

    def write(self, image: ImageFile, captions: "Sequence[Caption]") -> None:
        """Print the captions of an image."""
        for row in _rows(image, captions):
            say(to_json(row._asdict()) if self._json else f"{on_one_line(row.image)}\t{row.caption}")


class RowOutput:
    """Rows of a JSON lines or CSV file, which an interrupted job goes on with."""

    def __init__(self, path: Path, num_captions: int, images: Sequence[ImageFile]) -> None:
        self._file = RowFile(path, num_captions, [image.name for image in images])
        self.done = self._file.done

    def write(self, image: ImageFile, captions: "Sequence[Caption]") -> None:
        """Append the captions of an image."""
        self._file.append(_rows(image, captions))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Sidecars(_NothingToClose):
    """`NAME.txt` beside each image, with one caption per line. A file that exists is never overwritten.

    Raises:
        UserError: an image is not a separate file, or two images would share a text file.
    """

    def __init__(self, images: Sequence[ImageFile]) -> None:
        self.done: set[str] = set()
        owners: dict[Path, ImageFile] = {}
        for image in images:
            if image.path is None:
                raise UserError(f"{image.name}: nothing can lie beside an image of a shard or table; use --out FILE")
            text = image.path.with_suffix(".txt")
            if text in owners:
                raise UserError(f"{owners[text].name} and {image.name} would share {text.name}; use --out FILE")
            owners[text] = image
            if text.exists() or text.is_symlink():  # one that leads nowhere is not ours to fill either
                self.done.add(image.name)

    def write(self, image: ImageFile, captions: "Sequence[Caption]") -> None:
        """Write the captions of an image beside it."""
        assert image.path is not None
        text = "".join(f"{row.caption}\n" for row in _rows(image, captions))
        write_output(image.path.with_suffix(".txt"), lambda file: file.write(text.encode()))


def _rows(image: ImageFile, captions: "Sequence[Caption]") -> list[CaptionRow]:
    # A model may write a line end, but a caption must stay on one line.
    return [CaptionRow(image.name, " ".join(c.text.split()), round(sum(c.log_probs), 4)) for c in captions]
