"""The places that captions are written to: standard output, a file of rows, or a text file beside each image."""

from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from grr_coca.cli.output.caption_rows import CaptionRow, RowFile
from grr_coca.cli.output.say import say, to_json
from grr_coca.cli.output.writing import write_output
from grr_coca.data.image_files.find import ImageFile
from grr_coca.errors import UserError
from grr_coca.messages import on_one_line

if TYPE_CHECKING:
    from grr_coca.generate import Caption


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
