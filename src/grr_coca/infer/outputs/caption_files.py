"""Write caption files: rows in CSV or JSON lines, and text and XMP files next to the images.

`grr-coca caption` writes these files, and Python programs can also do so. Each `CaptionOutput` lists the images that
already have captions (`done`), and writes the captions of one image at a time (`write`).
"""

import csv
import io
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Self, TextIO

from grr_coca.common.errors import UserError
from grr_coca.common.files import resolve_link
from grr_coca.common.locks import LockHeldError, ProcessLock
from grr_coca.common.outputs import disk_errors, require_suffix, require_writable, to_json, write_output
from grr_coca.infer.outputs.sidecar import XmpError, has_caption, sidecar_to_write, write_sidecar

if TYPE_CHECKING:
    from grr_coca.data.image_files import ImageFile
    from grr_coca.infer import Description
    from grr_coca.infer.generate import Caption


class CaptionRow(NamedTuple):
    """One caption of an image, as a row of a caption file.

    Attributes:
        image: Name of the image.
        caption: The caption, on one line.
        log_prob: Natural logarithm of the probability of the complete caption. None if no decoder computed it.
    """

    image: str
    caption: str
    log_prob: float | None


def caption_rows(image: "ImageFile", captions: "Sequence[Caption]") -> list[CaptionRow]:
    """Return the rows for the captions of an image, in order. Log-probabilities are rounded to four decimal places."""
    # A model can generate a line end, but a caption must stay on one line.
    return [CaptionRow(image.name, " ".join(c.text.split()), _rounded_log_prob(c)) for c in captions]


def _rounded_log_prob(caption: "Caption") -> float | None:
    log_prob = caption.log_prob
    return None if log_prob is None else round(log_prob, 4)


class CaptionOutput(ABC):
    """Output for the captions of one image at a time. Use it as a context manager, or call `close`.

    Attributes:
        done: Names of images that already have captions.
        unusable: Names of images whose captions cannot be written.
        kind: Description of the output, such as "XMP file".
        unwritten: An error message for each file that could not be written.
    """

    kind = ""

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.unusable: set[str] = set()
        self.unwritten: list[str] = []

    @abstractmethod
    def write(self, image: "ImageFile", description: "Description") -> None:
        """Write the captions of an image, which must be one of the images of the job.

        Raises:
            UserError: If the disk is full or cannot be written to.
        """

    def close(self) -> None:  # noqa: B027 (not all outputs need to be closed)
        """Finish writing, even after an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CaptionFile(CaptionOutput):
    """File of rows (`CaptionRow`) in JSON lines or CSV, which an interrupted job can continue.

    `done` contains the images for which all captions are in the file. Before the first new row is written, a truncated
    last line and the rows of images with only some of their captions are removed. Until the file is closed, no other
    process can add rows, unless the file system does not support locks.

    Args:
        path: The file. Its suffix is `.jsonl` or `.csv`.
        images: All images of the job. Rows of other images are kept.
        rows_per_image: Number of captions of each image.

    Raises:
        UserError: If the suffix is not a supported format, the file has other content, or it cannot be written to, for
            example because another process writes to it.
    """

    def __init__(self, path: str | Path, images: "Iterable[ImageFile]", rows_per_image: int = 1) -> None:
        super().__init__()
        self.path = path = Path(path)
        self._is_csv = require_suffix(path, (".jsonl", ".csv")) == ".csv"
        require_writable(path)
        self._file: TextIO | None = None
        self._lock = self._lock_file()
        try:
            with disk_errors(path):
                counts = Counter(row.image for row in self._read()) if path.exists() else Counter()
        except UserError:
            self.close()
            raise
        self.done = {image for image, count in counts.items() if count >= rows_per_image}
        self._incomplete = (counts.keys() - self.done) & {image.name for image in images}

    def _lock_file(self) -> ProcessLock | None:
        """Lock the file with a hidden lock file next to it. Return None if the file system does not support locks."""
        target = resolve_link(self.path)
        try:
            return ProcessLock(target.with_name(f".{target.name}.lock"), removes=True)
        except LockHeldError as error:
            raise UserError(
                f"{self.path}: another process is writing to this file; wait until that process is done, "
                "or use another file"
            ) from error
        except OSError:
            return None

    def write(self, image: "ImageFile", description: "Description") -> None:
        """Append the rows of an image, and flush them immediately."""
        with disk_errors(self.path):
            if self._file is None:
                self._file = self._open_for_rows()
            self._file.write("".join(self._line(row) for row in caption_rows(image, description.captions)))
            self._file.flush()

    def close(self) -> None:
        """Close the file, and allow other processes to write to it."""
        try:
            with disk_errors(self.path):
                if self._file is not None:
                    self._file.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    def _open_for_rows(self) -> TextIO:
        """Open the file and prepare it for the first new row. Until then, the file stays unchanged."""
        if self.path.exists() and (self._incomplete or _has_partial_line(self.path)):
            write_output(self.path, self._write_complete)
        file = resolve_link(self.path).open("a", encoding="utf-8", errors="surrogateescape", newline="")
        if self._is_csv and self.path.stat().st_size == 0:
            file.write(_csv_line(CaptionRow._fields))
        return file

    def _line(self, row: CaptionRow) -> str:
        return _csv_line(row) if self._is_csv else to_json(row._asdict()) + "\n"

    def _write_complete(self, file: IO[bytes]) -> None:
        if self._is_csv:
            file.write(_csv_line(CaptionRow._fields).encode())
        for row in self._read():
            if row.image not in self._incomplete:
                file.write(self._line(row).encode("utf-8", "surrogateescape"))

    def _read(self) -> Iterator[CaptionRow]:
        """Yield the rows in the file, except a truncated last row.

        Raises:
            UserError: If the file has other content.
        """
        with self.path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            whole = (line for line in file if line.endswith("\n"))
            for number, record in enumerate(self._records(whole), 1):
                try:
                    yield CaptionRow(str(record["image"]), str(record["caption"]), _parse_log_prob(record["log_prob"]))
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    raise self._format_error(f"row {number}") from error

    def _records(self, lines: Iterable[str]) -> Iterator[dict[str, object]]:
        if self._is_csv:
            reader = csv.DictReader(lines, strict=True)
            try:
                if reader.fieldnames is not None and tuple(reader.fieldnames) != CaptionRow._fields:
                    raise self._format_error("its first line")
                yield from reader
            except csv.Error as error:  # the row has an unclosed quote
                raise self._format_error(f"line {reader.line_num}") from error
            return
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise self._format_error(f"row {number}") from error

    def _format_error(self, where: str) -> UserError:
        columns = ", ".join(CaptionRow._fields)
        return UserError(f"{self.path}: {where} does not have the columns {columns}; use another file")


def _parse_log_prob(log_prob: object) -> float | None:
    return None if log_prob in (None, "") else float(log_prob)  # type: ignore[arg-type]


def _has_partial_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, io.SEEK_END) == 0:
            return False
        file.seek(-1, io.SEEK_END)
        return file.read() != b"\n"


def _csv_line(values: Sequence[object]) -> str:
    buffer = io.StringIO(newline="")
    # with this line end, values that contain either of its two characters are quoted
    csv.writer(buffer, lineterminator="\r\n").writerow(values)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


class TextFiles(CaptionOutput):
    """Text files `NAME.txt` next to the images, or existing files `NAME.TXT`, with one caption per line.

    Read-only folders are skipped.

    Args:
        images: All images of the job.
        overwrite: Whether to replace existing files.
        instead: Alternative that error messages suggest.

    Raises:
        UserError: If an image is not a separate file, or two images would share a text file.
    """

    kind = "text file"

    def __init__(
        self, images: "Sequence[ImageFile]", *, overwrite: bool = False, instead: str = "a file of rows"
    ) -> None:
        from grr_coca.data.sources.folder import caption_file  # lazy import, because it needs NumPy

        super().__init__()
        self._files = files_beside(images, lambda path: caption_file(path) or path.with_suffix(".txt"), instead)
        self.done = {
            name
            for name, text in self._files.items()
            # Links are never replaced, even if they have no target, because they may lead to the image itself.
            if text.is_symlink() or (text.exists() and not overwrite)
        }
        closed = read_only_folder_errors(self._files)
        self.unusable = closed.keys() - self.done
        self.unwritten = [closed[name] for name in self._files if name in self.unusable]

    def write(self, image: "ImageFile", description: "Description") -> None:
        """Write the captions of an image, best first."""
        text = "".join(f"{row.caption}\n" for row in caption_rows(image, description.captions))
        write_output(self._files[image.name], lambda file: file.write(text.encode()))


class XmpFiles(CaptionOutput):
    """XMP files next to the images, with the best caption or keywords of each image.

    Other content of a file is kept. Files that cannot be changed safely stay unchanged: their images are added to
    `unusable`, and an error message is added to `unwritten`.

    The arguments and errors are those of `TextFiles`.
    """

    kind = "XMP file"

    def __init__(
        self, images: "Sequence[ImageFile]", *, overwrite: bool = False, instead: str = "a file of rows"
    ) -> None:
        super().__init__()
        self._overwrite = overwrite
        stems = Counter(image.path.with_suffix("") for image in images if image.path is not None)
        self._files = files_beside(
            images, lambda path: sidecar_to_write(path, is_alone=stems[path.with_suffix("")] == 1), instead
        )
        self._closed = read_only_folder_errors(self._files)
        for name, sidecar in self._files.items():
            try:
                if has_caption(sidecar):
                    self.done.update(() if overwrite else (name,))
                elif name in self._closed:
                    raise XmpError(self._closed[name])
            except XmpError as error:
                self.unusable.add(name)
                self.unwritten.append(str(error))

    def write(self, image: "ImageFile", description: "Description") -> None:
        """Write the best caption of an image."""
        self._write(image, caption_rows(image, description.captions)[0].caption, ())

    def add_keywords(self, image: "ImageFile", keywords: Sequence[str]) -> None:
        """Add keywords to the XMP file of an image, without changing its caption or its existing keywords."""
        self._write(image, None, keywords)

    def _write(self, image: "ImageFile", caption: str | None, keywords: Sequence[str]) -> None:
        if image.name in self.unusable:
            return
        sidecar = self._files[image.name]
        try:
            if image.name in self._closed:
                raise XmpError(self._closed[image.name])
            with disk_errors(sidecar):
                write_sidecar(sidecar, caption, keywords, overwrite=self._overwrite)
        except XmpError as error:
            self.unusable.add(image.name)
            self.unwritten.append(str(error))


def files_beside(images: "Sequence[ImageFile]", path_of: Callable[[Path], Path], instead: str) -> dict[str, Path]:
    """Map the name of each image to the path of the file to write next to it.

    Args:
        images: All images of the job.
        path_of: Function that returns the path of the file for the path of an image.
        instead: Alternative that error messages suggest.

    Raises:
        UserError: If an image is not a separate file, two images would share a file, or the file is an image.
    """
    paths: dict[str, Path] = {}
    owners: dict[Path, str] = {}  # image names by file, with all links in the folder's path resolved
    for image in images:
        if image.path is None:
            raise UserError(f"{image.name}: an image in a shard or table cannot have a file next to it; use {instead}")
        path = paths[image.name] = path_of(image.path)
        other = owners.setdefault(path.parent.resolve() / path.name, image.name)
        if other != image.name:
            raise UserError(f"{other} and {image.name}: both texts would be written to {path.name}; use {instead}")
    for image in images:
        path = Path(image.name)
        if path.resolve() in owners or path.parent.resolve() / path.name in owners:
            raise UserError(f"{image.name}: this image would be overwritten; use {instead}")
    return paths


def read_only_folder_errors(paths: Mapping[str, Path]) -> dict[str, str]:
    """Return an error message, by image name, for each image whose file would be in a read-only folder.

    These folders are found before the work begins, so that they do not interrupt the work on other images.
    """
    folders = {path.parent for path in paths.values()}
    closed = {folder for folder in folders if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK)}
    return {
        name: f"{path}: the folder is read-only; make it writable"
        for name, path in paths.items()
        if path.parent in closed
    }
