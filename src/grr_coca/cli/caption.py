"""`grr-coca caption`: the verb, and the three places for captions: standard output, a file of rows, text files.

A file of rows grows row by row, so an interrupted job can continue.
"""

import csv
import io
import json as json_format
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal, NamedTuple, TextIO

import tyro

import grr_coca
from grr_coca.cli.flags import CheckpointFlag, EngineFlag, ExcludeFlag, Flag, ImageArguments, require_batch_size
from grr_coca.cli.output import (
    disk_errors,
    require_other,
    require_suffix,
    require_writable,
    say,
    to_json,
    write_output,
)
from grr_coca.cli.sidecars import (
    XmpFiles,
    in_closed_folders,
    places_beside,
    report_unfamiliar,
    report_unwritten,
)
from grr_coca.common.errors import UserError, on_one_line
from grr_coca.common.extras import require_extra
from grr_coca.common.files import behind_link
from grr_coca.common.locks import LockHeldError, ProcessLock
from grr_coca.infer.generate.options import GenerationOptions
from grr_coca.infer.locate import locate_checkpoint
from grr_coca.infer.on_ray import Machines
from grr_coca.model.shipped_models import DEFAULT

if TYPE_CHECKING:
    from grr_coca.infer import Description
    from grr_coca.infer.generate import Caption
    from grr_coca.search.image_files import ImageFile


SidecarKind = Literal["txt", "xmp"]


@dataclass(frozen=True)
class Decoding(GenerationOptions):
    """Decoding options as flags. `checked` validates them after parsing, so that this program reports errors."""

    def __post_init__(self) -> None: ...

    def checked(self) -> GenerationOptions:
        """The options, validated.

        Raises:
            UserError: a value is out of range, or two options contradict each other.
        """
        return GenerationOptions(**vars(self))


def run(
    checkpoint: CheckpointFlag = DEFAULT,
    images: ImageArguments = (),
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    sidecar: Annotated[SidecarKind | None, tyro.conf.arg(metavar="txt|xmp")] = None,
    overwrite: Flag = False,
    json: Flag = False,
    prompt: Annotated[str, tyro.conf.arg(metavar="TEXT")] = "",
    exclude: ExcludeFlag = (),
    batch_size: int = 32,
    on: Annotated[Machines, tyro.conf.arg(metavar="this|ray")] = "this",
    engine: EngineFlag = "auto",
    decoding: Annotated[Decoding, tyro.conf.OmitArgPrefixes] = Decoding(),
) -> int:
    """Caption images. Each output line is: image, tab, caption.

    Images that cannot be read are listed at the end. The exit code is 1 only if no image was captioned.

    Args:
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub.
        images: image files, folders, patterns, .tar shards, or tables of images.
        out: write rows to this .jsonl or .csv file; images that are in it already are not captioned again.
        sidecar: write a caption beside each image that has none: into NAME.txt, or into NAME.jpg.xmp, which photo
            managers read; what else is in such a file stays. Images that are unlike those of the training get none.
        overwrite: with --sidecar, also replace captions that are there.
        json: print JSON lines, also with the probability that a caption is exactly right (confidence), and whether the
            image is unlike those that the model was trained on (unfamiliar); null: unknown.
        prompt: text that every caption begins with.
        exclude: leave out what this pattern of .gitignore matches, such as "raw/" or "*.gif".
        batch_size: images per batch.
        on: this machine, or the Ray cluster at RAY_ADDRESS, whose machines must see the same files.
        engine: onnx (on a CPU) or torch; auto chooses by a fixed rule.
        decoding: Greedy by default. Lengths are in tokens, without the prompt.
    """
    options = decoding.checked()
    require_batch_size(batch_size)
    if out is not None:
        require_other(out, images)
    if on == "ray":
        require_extra("ray", "--on ray")
    from grr_coca.cli.image_work import (  # late: imports NumPy and Pillow
        describe_on_ray,
        report_if_none_exists,
        search_for_images,
        shows_progress,
        work_through,
    )

    found = search_for_images(images, exclude)
    folder = locate_checkpoint(checkpoint)
    code = report_if_none_exists(found)
    if code is not None:
        return code
    with closing(_open_output(out, sidecar, overwrite, json, found, options.num_captions)) as output:
        num_captioned = sum(image.name in output.done for image in found)
        if num_captioned:
            print(f"{num_captioned} of {len(found)} images have captions already", file=sys.stderr)
        wanted = [image for image in found if image.name not in output.done and image.name not in output.unusable]
        if not wanted:
            return int(not num_captioned)
        best: list[str] = []
        unfamiliar: list[bool | None] = []

        def write(files: "list[ImageFile]", described: "list[Description]") -> None:
            nonlocal num_captioned
            for file, description in zip(files, described, strict=True):
                unfamiliar.append(description.unfamiliar)
                if sidecar is not None and description.unfamiliar:
                    continue
                output.write(file, description)
                num_captioned += file.name not in output.unusable
                best.append(description.captions[0].text)

        shown = shows_progress(prints=out is None and sidecar is None)
        if on == "ray":
            describe_on_ray(
                wanted,
                folder,
                engine,
                captioning=(prompt, options),
                batch_size=batch_size,
                label="captions",
                take=write,
                show_progress=shown,
            )
        else:
            model = grr_coca.load(folder, engine=engine)

            def caption(files: "list[ImageFile]", opened: list) -> "list[Description]":
                names = [file.name for file in files]
                return model.describe_many(opened, prompt, options, batch_size, keys=names)

            work_through(wanted, model, batch_size, "captions", caption, write, shown)
    from grr_coca.infer.generate import warn_if_repeated
    from grr_coca.infer.image_text_model import warn_if_unfamiliar

    warn_if_repeated(best)
    if sidecar is None:
        warn_if_unfamiliar(unfamiliar)
    else:
        report_unfamiliar(unfamiliar)
    return int(not num_captioned)


class _Row(NamedTuple):
    """One caption of an image. `log_prob`: natural logarithm of the probability of the whole caption."""

    image: str
    caption: str
    log_prob: float


class _Output(ABC):
    """Writes the captions of one image after the other.

    `done`, `unusable`: names of the images that already have captions, or whose captions cannot be written.
    """

    done: Collection[str] = frozenset()
    unusable: Collection[str] = frozenset()

    @abstractmethod
    def write(self, image: "ImageFile", description: "Description") -> None:
        """Write the captions of an image."""

    def close(self) -> None:  # noqa: B027 (not all have something to close)
        """Called at the end, also after an error."""


def _open_output(
    out: Path | None,
    sidecar: SidecarKind | None,
    overwrite: bool,
    json: bool,
    images: "Sequence[ImageFile]",
    num_captions: int,
) -> _Output:
    """The output that the flags ask for.

    Raises:
        UserError: the flags ask for two outputs, or for one that does not work for these images.
    """
    asked = [name for name, is_asked in (("--out", out), ("--sidecar", sidecar), ("--json", json)) if is_asked]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} name different outputs; give one of them")
    if overwrite and sidecar is None:
        raise UserError("--overwrite replaces captions beside images; give --sidecar txt or --sidecar xmp too")
    if out is not None:
        return _RowFile(out, num_captions, [image.name for image in images])
    if sidecar is not None:
        return _TextFiles(images, overwrite) if sidecar == "txt" else _XmpCaptions(images, overwrite)
    return _StandardOutput(json)


class _StandardOutput(_Output):
    """One line for each caption on standard output: image, tab, caption; or JSON."""

    def __init__(self, json: bool) -> None:
        self._json = json

    def write(self, image: "ImageFile", description: "Description") -> None:
        for row, (confidence, unfamiliar) in zip(
            _rows(image, description.captions), description.certainties, strict=True
        ):
            shown = None if confidence is None else round(confidence, 4)
            record = {**row._asdict(), "confidence": shown, "unfamiliar": unfamiliar, "engine": description.engine}
            say(to_json(record) if self._json else f"{on_one_line(row.image)}\t{row.caption}")


class _TextFiles(_Output):
    """`NAME.txt` beside each image, or the `NAME.TXT` that is there, with one caption per line. Those in folders that
    are read-only are listed at the end.

    Raises:
        UserError: an image is not a separate file, or two images would share a text file.
    """

    def __init__(self, images: "Sequence[ImageFile]", overwrite: bool) -> None:
        from grr_coca.data.sources.folder import caption_file  # late: imports NumPy

        self._places = places_beside(images, lambda path: caption_file(path) or path.with_suffix(".txt"))
        self.done = {
            name
            for name, text in self._places.items()
            # A link is left alone, also without a target: it may lead to the image itself.
            if text.is_symlink() or (text.exists() and not overwrite)
        }
        closed = in_closed_folders(self._places)
        self.unusable = closed.keys() - self.done
        self._failures = [closed[name] for name in self._places if name in self.unusable]

    def write(self, image: "ImageFile", description: "Description") -> None:
        text = "".join(f"{row.caption}\n" for row in _rows(image, description.captions))
        write_output(self._places[image.name], lambda file: file.write(text.encode()))

    def close(self) -> None:
        report_unwritten(self._failures, "text file")


class _XmpCaptions(_Output):
    """The best caption of each image in an XMP file beside it. What else is in that file stays."""

    def __init__(self, images: "Sequence[ImageFile]", overwrite: bool) -> None:
        self._files = XmpFiles(images)
        self._overwrite = overwrite
        self.done = set[str]() if overwrite else self._files.captioned
        self.unusable = self._files.unusable

    def write(self, image: "ImageFile", description: "Description") -> None:
        self._files.write(image, _rows(image, description.captions)[0].caption, overwrite=self._overwrite)

    def close(self) -> None:
        self._files.report()


def _rows(image: "ImageFile", captions: "Sequence[Caption]") -> list[_Row]:
    # A model may write a line end, but a caption must stay on one line.
    return [_Row(image.name, " ".join(c.text.split()), round(sum(c.log_probs), 4)) for c in captions]


class _RowFile(_Output):
    """A file of `_Row`s: JSON lines or CSV, by its suffix. An interrupted job continues it.

    `done`: the images that have all their captions in the file. Before the first new row is written, a last line that
    was cut off is removed, and so are the rows of those `images` that lack captions. Rows of other images stay. Until
    it is closed, no other process adds rows.

    Raises:
        UserError: the suffix names no format, the file holds something else, or it cannot be written to, as another
            process does.
    """

    def __init__(self, path: Path, rows_per_image: int, images: Collection[str]) -> None:
        self.path = path
        self._is_csv = require_suffix(path, (".jsonl", ".csv")) == ".csv"
        require_writable(path)
        self._file: TextIO | None = None
        self._lock = self._locked()
        try:
            with disk_errors(path):
                counts = Counter(row.image for row in self._read()) if path.exists() else Counter()
        except UserError:
            self.close()
            raise
        self.done = {image for image, count in counts.items() if count >= rows_per_image}
        self._incomplete = (counts.keys() - self.done) & set(images)

    def _locked(self) -> ProcessLock | None:
        """The lock of the file, in a hidden file beside it; None if the file system has no locks."""
        target = behind_link(self.path)
        try:
            return ProcessLock(target.with_name(f".{target.name}.lock"), removes=True)
        except LockHeldError as error:
            raise UserError(
                f"{self.path}: another process writes to it; wait until it is done, or use another file"
            ) from error
        except OSError:
            return None

    def write(self, image: "ImageFile", description: "Description") -> None:
        """Add the rows of an image, and flush them at once."""
        with disk_errors(self.path):
            if self._file is None:
                self._file = self._begun()
            self._file.write("".join(self._line(row) for row in _rows(image, description.captions)))
            self._file.flush()

    def close(self) -> None:
        try:
            with disk_errors(self.path):
                if self._file is not None:
                    self._file.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    def _begun(self) -> TextIO:
        """The file, ready for the first new row. If no row is new, the file stays unchanged."""
        if self.path.exists() and (self._incomplete or _is_torn(self.path)):
            write_output(self.path, self._write_complete)
        file = behind_link(self.path).open("a", encoding="utf-8", errors="surrogateescape", newline="")
        if self._is_csv and self.path.stat().st_size == 0:
            file.write(_csv_line(_Row._fields))
        return file

    def _line(self, row: _Row) -> str:
        return _csv_line(row) if self._is_csv else to_json(row._asdict()) + "\n"

    def _write_complete(self, file: IO[bytes]) -> None:
        if self._is_csv:
            file.write(_csv_line(_Row._fields).encode())
        for row in self._read():
            if row.image not in self._incomplete:
                file.write(self._line(row).encode("utf-8", "surrogateescape"))

    def _read(self) -> Iterator[_Row]:
        """The rows of the file. A last row that was cut off is left out."""
        with self.path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            whole = (line for line in file if line.endswith("\n"))
            for number, record in enumerate(self._records(whole), 1):
                try:
                    yield _Row(str(record["image"]), str(record["caption"]), float(record["log_prob"]))  # type: ignore[arg-type]
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    raise self._not_ours(f"row {number}") from error

    def _records(self, lines: Iterable[str]) -> Iterator[dict[str, object]]:
        if self._is_csv:
            reader = csv.DictReader(lines)
            try:
                if reader.fieldnames is not None and tuple(reader.fieldnames) != _Row._fields:
                    raise self._not_ours("its first line")
                yield from reader
            except csv.Error as error:  # a quote that is never closed
                raise self._not_ours(f"line {reader.line_num}") from error
            return
        for number, line in enumerate(lines, 1):
            try:
                yield json_format.loads(line)
            except (ValueError, RecursionError) as error:
                raise self._not_ours(f"row {number}") from error

    def _not_ours(self, place: str) -> UserError:
        columns = ", ".join(_Row._fields)
        return UserError(
            f"{self.path}: {place} does not have the columns {columns}, so no captions are added; use another file"
        )


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
