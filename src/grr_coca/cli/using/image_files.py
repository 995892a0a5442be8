"""Finds the images that the arguments of a verb name: files, folders, patterns, tar shards and tables of pairs."""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from grr_coca.data.images import IMAGE_SUFFIXES
from grr_coca.errors import UserError
from grr_coca.files import read_whole

if TYPE_CHECKING:
    from grr_coca.data.sources.pairs import PairSource

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".token"})
"""Suffixes of files that list images. They are read like training data."""


@dataclass(frozen=True)
class ImageFile:
    """An image that will be read later.

    Results carry its `name`. `path` is None if the image is not a separate file. `read` returns its bytes, and raises
    `UserError` if it cannot be read.
    """

    name: str
    read: Callable[[], bytes]
    path: Path | None = None


def find_images(arguments: Sequence[str]) -> list[ImageFile]:
    """The images that the arguments name, in order and without repetition.

    Folders are searched with all their subfolders. Files without the suffix of an image are skipped there. A file that
    is named directly counts as an image, whatever its suffix.

    Raises:
        UserError: there is no argument, or a folder or pattern without an image.
    """
    if not arguments:
        raise UserError("no images; give image files, folders, patterns, .tar shards or tables of pairs")
    found = (image for argument in arguments for image in _find(argument))
    return list({image.name: image for image in found}.values())


def _find(argument: str) -> list[ImageFile]:
    path = Path(argument)
    if path.is_dir():
        images = [image for file in _files_below(path) for image in _open(file)]
        if not images:
            raise UserError(f"{argument}: no images in this folder (looked for {_suffixes()} and .tar)")
        return images
    if not path.exists() and has_magic(argument):
        return _matches(argument)
    if Path(argument.partition("#")[0]).suffix.lower() in TABLE_SUFFIXES:
        from grr_coca.data.sources.open import open_source  # late: most images are files of their own

        return list(_of_table(open_source(argument)))
    return _open(path)


def _matches(pattern: str) -> list[ImageFile]:
    files = [Path(name) for name in sorted(glob(pattern, recursive=True))]  # noqa: PTH207 (an absolute pattern)
    images = [image for file in files if _is_wanted(file) for image in _open(file)]
    if not images:
        raise UserError(f"{pattern}: no image matches this pattern")
    return images


def _files_below(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        # Hidden files are skipped: macOS writes `._NAME.jpg` beside every NAME.jpg.
        is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not is_hidden and _is_wanted(file):
            yield file


def _is_wanted(file: Path) -> bool:
    return file.suffix[1:].lower() in IMAGE_SUFFIXES | {"tar"} and file.is_file()


def _open(path: Path) -> list[ImageFile]:
    if path.suffix.lower() == ".tar" and path.is_file():
        return list(_of_tar(path))
    return [ImageFile(str(path), partial(read_whole, path), path)]


def _of_tar(path: Path) -> Iterator[ImageFile]:
    """The images of a shard, with or without captions. If the shard is damaged, the last one raises an error that says
    so when it is read."""
    count = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and member.name.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
                    count += 1
                    read = partial(_read_span, path, member.offset_data, member.size)
                    yield ImageFile(f"{path}: {member.name}", read)
            if 0 < path.stat().st_size - tar.offset < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends within a header")  # tarfile takes that for the end of the tar
    except (tarfile.TarError, OSError) as error:
        yield ImageFile(f"{path}", partial(_refuse, f"{path}: not a whole uncompressed tar file ({error})"))
    else:
        if not count:
            yield ImageFile(f"{path}", partial(_refuse, f"{path}: holds no images ({_suffixes()})"))


def _of_table(source: "PairSource") -> Iterator[ImageFile]:
    for index in range(len(source)):
        yield ImageFile(source.name(index), partial(_read_pair, source, index))


def _read_pair(source: "PairSource", index: int) -> bytes:
    return source[index].image


def _read_span(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _refuse(message: str) -> bytes:
    raise UserError(message)


def _suffixes() -> str:
    return ", ".join(f".{suffix}" for suffix in sorted(IMAGE_SUFFIXES))
