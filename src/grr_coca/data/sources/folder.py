"""A folder of images, each with its caption in a text file of the same name beside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from grr_coca.data.images import has_image_suffix, walk_visible
from grr_coca.data.sources.base import BadSample, Cause, RawPair, Strings
from grr_coca.data.sources.listed import read_image_file
from grr_coca.data.text import decode_text
from grr_coca.errors import UserError


class ImageFolder:
    """The pairs `NAME.jpg` and `NAME.txt` of a folder and its visible subfolders, sorted by path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = Strings(sorted(_image_names(root), key=lambda name: name.split("/")))
        if not len(self.names):
            raise UserError(
                f"{root}: no images; expected NAME.jpg (or .png, .webp …) beside NAME.txt, or .tar shards, or a table "
                "metadata.csv, .jsonl or .parquet"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        caption, path = self.caption(index), self._path(index)
        key = path.relative_to(self.root).with_suffix("").as_posix()
        return RawPair(key, str(path), read_image_file(path, str(path)), caption)

    def caption(self, index: int) -> str:
        """Read the caption of a pair."""
        image = self._path(index)
        path = image.with_suffix(".txt")
        if not path.is_file():
            message = f"{image}: no caption; expected it in {path.name} beside it"
            raise BadSample(message, Cause.NO_CAPTION)
        return decode_text(read_image_file(path, str(path)), str(path))

    def captions(self, index: int) -> tuple[str, ...]:
        """Read the caption of a pair."""
        return (self.caption(index),)

    def name(self, index: int) -> str:
        """The path of the image."""
        return str(self._path(index))

    def image_name(self, index: int) -> str:
        """The path of the image."""
        return str(self._path(index))

    def place(self, index: int) -> str:
        """The folder of the image."""
        return str(self._path(index).parent)

    def _path(self, index: int) -> Path:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.root / self.names[index]


def _image_names(root: Path) -> Iterator[str]:
    for folder, _, files in walk_visible(root, _refuse):
        for name in filter(has_image_suffix, files):
            yield Path(folder, name).relative_to(root).as_posix()


def _refuse(error: OSError) -> NoReturn:
    """Raise an error for a folder that cannot be read, as a run must not silently miss its pairs."""
    raise UserError(
        f"{error.filename}: cannot be listed ({error.strerror or error}); make it readable, or move it elsewhere"
    ) from error
