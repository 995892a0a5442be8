"""A folder of images, each with its captions in a text file of the same name beside it, one a line."""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from grr_coca.common.errors import UserError
from grr_coca.data.images import has_image_suffix
from grr_coca.data.sources.base import MAX_TEXT, BadSample, Cause, PairSource, RawPair, Strings, digest_header
from grr_coca.data.sources.listed import read_image_file
from grr_coca.data.text import caption_lines, decode_text
from grr_coca.data.walk import walk_visible


class ImageFolder(PairSource):
    """The pairs `NAME.jpg` and `NAME.txt` of a folder and its subfolders, sorted by path. See `walk_visible`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = Strings(sorted(_image_names(root), key=lambda name: name.replace("/", "\0")))
        if not len(self.names):
            raise UserError(
                f"{root}: no images; expected NAME.jpg (or .png, .webp …) beside NAME.txt, or .tar shards, or a table "
                "metadata.csv, .jsonl or .parquet"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        (caption, *others), path = self.captions(index), self._path(index)
        key = path.relative_to(self.root).with_suffix("").as_posix()
        return RawPair(key, str(path), read_image_file(path, str(path)), caption, more_captions=tuple(others))

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of a pair."""
        image = self._path(index)
        path = caption_file(image)
        if path is None:
            message = f"{image}: no caption; expected it in {image.with_suffix('.txt').name} beside it"
            raise BadSample(message, Cause.NO_CAPTION)
        return caption_lines(decode_text(read_image_file(path, str(path), MAX_TEXT), str(path)))

    def name(self, index: int) -> str:
        """The path of the image."""
        return str(self._path(index))

    def digest_parts(self) -> Iterator[bytes | memoryview]:
        """The names of all images."""
        yield digest_header(self)
        yield from self.names.buffers()

    def place(self, index: int) -> str:
        """The folder of the image."""
        return str(self._path(index).parent)

    def _path(self, index: int) -> Path:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.root / self.names[index]


def caption_file(image: Path) -> Path | None:
    """The text file with the captions of an image; None if there is none."""
    return next((path for path in map(image.with_suffix, (".txt", ".TXT")) if path.is_file()), None)


def _image_names(root: Path) -> Iterator[str]:
    for folder, _, files in walk_visible(root, _refuse):
        inner = Path(folder).relative_to(root).as_posix()
        prefix = "" if inner == "." else f"{inner}/"
        yield from (prefix + name for name in files if has_image_suffix(name))


def _refuse(error: OSError) -> NoReturn:
    """Raise an error for a folder that cannot be read, as a run must not silently miss its pairs."""
    raise UserError(
        f"{error.filename}: cannot be listed ({error.strerror or error}); make it readable, or move it elsewhere"
    ) from error
