"""Folder of images. The captions of an image are in a text file of the same name, one per line."""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from grr_coca.common.errors import UserError
from grr_coca.common.files import read_regular
from grr_coca.data.images import MAX_BYTES
from grr_coca.data.sources.base import (
    MAX_TEXT,
    BadSample,
    Cause,
    PackedStrings,
    PairSource,
    RawPair,
    digest_header,
    require_max_bytes,
)
from grr_coca.data.tokenizer import caption_lines, decode_text
from grr_coca.data.walk import has_image_suffix, walk_visible


class ImageFolder(PairSource):
    """Pairs `NAME.jpg` and `NAME.txt` in a folder and its subfolders, sorted by path; see `walk_visible`.

    Raises:
        UserError: If the folder has no image, or the folder or a subfolder cannot be listed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = PackedStrings(sorted(_image_names(root), key=lambda name: name.replace("/", "\0")))
        if not len(self.names):
            raise UserError(
                f"{root}: no images; expected NAME.jpg (or .png, .webp …) next to NAME.txt, or .tar shards, or a table "
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
            message = f"{image}: the image has no caption; expected it in {image.with_suffix('.txt').name} next to it"
            raise BadSample(message, Cause.NO_CAPTION)
        return caption_lines(decode_text(read_image_file(path, str(path), MAX_TEXT), str(path)))

    def name(self, index: int) -> str:
        """Return the path of the image."""
        return str(self._path(index))

    def digest_parts(self) -> Iterator[bytes | memoryview]:
        """Yield the number and the names of all images."""
        yield digest_header(self)
        yield from self.names.buffers()

    def container(self, index: int) -> str:
        """Return the folder of the image."""
        return str(self._path(index).parent)

    def _path(self, index: int) -> Path:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.root / self.names[index]


def caption_file(image: Path) -> Path | None:
    """Return the text file with the captions of an image, or None if it does not exist."""
    return next((path for path in map(image.with_suffix, (".txt", ".TXT")) if path.is_file()), None)


def read_image_file(path: Path, name: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Read the bytes of a file.

    Args:
        path: Path of the file.
        name: Name of the file or its pair in messages.
        max_bytes: Maximum size of the file.

    Raises:
        BadSample: If the path is invalid, or the file does not exist, is not a regular file, is too large, or cannot be
            read.
    """
    try:
        return read_regular(path, lambda size: require_max_bytes(size, max_bytes, name))
    except BadSample:
        raise
    except FileNotFoundError as error:
        raise BadSample(
            f"{name}: the file {path} does not exist; correct the path or remove the pair", Cause.NO_IMAGE
        ) from error
    except OSError as error:
        raise BadSample(f"{name}: cannot be read ({error.strerror})", Cause.UNREADABLE) from error
    except ValueError as error:  # a null byte, or a lone surrogate, which JSON can contain
        raise BadSample(
            f"{name}: {str(path)!r} is not a path ({error}); correct it or remove the pair", Cause.NO_IMAGE
        ) from error


def _image_names(root: Path) -> Iterator[str]:
    for folder, _, files in walk_visible(root, _raise_unreadable):
        inner = Path(folder).relative_to(root).as_posix()
        prefix = "" if inner == "." else f"{inner}/"
        yield from (prefix + name for name in files if has_image_suffix(name))


def _raise_unreadable(error: OSError) -> NoReturn:
    """Raise an error for an unreadable folder, because a run must not silently skip its pairs."""
    raise UserError(
        f"{error.filename}: cannot be listed ({error.strerror or error}); make this folder readable, or "
        "move it elsewhere"
    ) from error
