"""Images decoded in the background, batch by batch, while the batch before is worked on.

Finds the images that arguments name: files, folders, patterns, tar shards and tables of pairs.
"""

import errno
import os
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from glob import escape, glob, has_magic
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from PIL import Image

from grr_coca.data.bad import BadSample, Cause
from grr_coca.data.images import IMAGE_SUFFIXES, MAX_BYTES, has_image_suffix, is_image_name, walk_visible
from grr_coca.data.sources.tar import next_member
from grr_coca.data.text import writable
from grr_coca.errors import UserError
from grr_coca.files import read_whole

if TYPE_CHECKING:
    from grr_coca.data.preprocess import Preprocess
    from grr_coca.data.sources.base import PairSource

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".token"})
"""Suffixes of files that list images. They are read like training data."""


_ANY_FOLDERS = re.compile(r"(^|/)\*\*(?:/|$)")
"""`**` as a part of a pattern by itself."""

_MEMBER = re.compile(r"(?P<shard>.*?\.tar): ", re.DOTALL | re.IGNORECASE)
"""Begins the name of an image in a shard, see `name_of_member`."""


class Span(NamedTuple):
    """The place of the bytes of an image: in `file`, from `offset` on. If `offset` is None, it is the whole file."""

    file: Path
    offset: int | None = None
    size: int | None = None

    def read(self) -> bytes:
        """Read the bytes.

        Raises:
            UserError: the file does not exist, cannot be read, or the image has more than `MAX_BYTES`.
        """
        if self.offset is None:
            return _read_file(self.file)
        _require_bytes(self.size or 0, str(self.file))
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                return file.read(-1 if self.size is None else self.size)
        except OSError as error:
            raise UserError(f"{self.file}: cannot be read ({error.strerror or error})") from error


@dataclass(frozen=True)
class ImageFile:
    """An image that will be read later.

    Results carry its `name`. `path` is None if the image is not a separate file. `read` returns its bytes, and raises
    `UserError` if it cannot be read. `span` is None if no file holds the bytes as they are. `fields` returns the other
    columns of the image's row in a table. `hides_others`: it stands for a folder or shard that could not be looked
    through, which may hold images that are not found.
    """

    name: str
    read: Callable[[], bytes]
    path: Path | None = None
    span: Span | None = None
    fields: Callable[[], Mapping[str, object]] = dict
    _: KW_ONLY
    hides_others: bool = False


def find_images(arguments: Sequence[str]) -> list[ImageFile]:
    """The images that the arguments name, in order and without repetition.

    Raises:
        UserError: there is no argument, or a folder or pattern without an image.
    """
    if not arguments:
        raise UserError("no images; give image files, folders, patterns, .tar shards or tables of pairs")
    found = (image for argument in arguments for image in iterate_images(argument))
    return list({image.name: image for image in found}.values())


def iterate_images(argument: str) -> Iterator[ImageFile]:
    """The images that one argument names, one after the other, without a list of all of them.

    Folders are searched with all their subfolders. Files without the suffix of an image are skipped there. A file that
    is named directly counts as an image, whatever its suffix.

    Raises:
        UserError: an empty argument, a folder or pattern without an image, or a table or folder that cannot be read.
    """
    require_name(argument)
    path = Path(argument)
    if is_forbidden(argument):
        raise UserError(f"{argument}: cannot be read ({os.strerror(errno.EACCES)})")
    if path.is_dir():
        yield from _not_none(_in_folder(path), f"{argument}: no images in this folder (looked for {_suffixes()}, .tar)")
    elif not path.exists() and has_magic(argument):
        yield from _not_none(_matches(argument), f"{argument}: no image matches this pattern")
    elif Path(argument.partition("#")[0]).suffix.lower() in TABLE_SUFFIXES:
        yield from _of_table(argument)
    else:
        yield from _open(path)


def require_name(argument: str) -> None:
    """Make sure that an argument is not empty, as an unset variable of a shell is: to the system it means `.`.

    Raises:
        UserError: it is.
    """
    if not argument:
        raise UserError("an empty name of an image; give files or folders, `.` for this folder")


def is_forbidden(path: str) -> bool:
    """Whether it cannot be told if a file is there, because the folder that it would lie in lets nobody look."""
    try:
        os.lstat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        pass
    return False


def _not_none(images: Iterator[ImageFile], message: str) -> Iterator[ImageFile]:
    first = next(images, None)
    if first is None:
        raise UserError(message)
    yield first
    yield from images


def _matches(pattern: str) -> Iterator[ImageFile]:
    for name in sorted(set(_expanded(pattern))):
        if _is_wanted(Path(name)):
            yield from _open(Path(name))


def _expanded(pattern: str) -> Iterator[str]:
    """What a pattern matches. `**` goes through subfolders as a walk does: `glob` would follow links in circles."""
    stars = _ANY_FOLDERS.search(pattern)
    if stars is None:
        yield from glob(pattern)  # noqa: PTH207 (an absolute pattern)
        return
    above, rest = pattern[: stars.start()], pattern[stars.end() :] or "*"
    for top in glob(above or stars[1] or "."):  # noqa: PTH207
        for folder, _, _ in walk_visible(Path(top)):
            yield from _expanded(f"{escape(folder).rstrip('/')}/{rest}")


def _in_folder(root: Path) -> Iterator[ImageFile]:
    """The images below a folder. A folder that cannot be listed is an image that raises an error when it is read."""
    refused: list[OSError] = []
    for folder, folders, files in walk_visible(root, refused.append):
        yield from _refused(refused)
        if not os.access(folder, os.X_OK):  # it tells the names of its files, and lets nobody at them
            refused.append(PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder))
            folders.clear()
            continue
        for path in (Path(folder, name) for name in files):
            if _is_wanted(path):
                yield from _open(path)
    yield from _refused(refused)


def _refused(errors: list[OSError]) -> Iterator[ImageFile]:
    while errors:
        error = errors.pop(0)
        read = partial(_refuse, f"{error.filename}: cannot be read ({error.strerror or error})", error)
        yield ImageFile(str(error.filename), read, hides_others=True)


def _is_wanted(file: Path) -> bool:
    return (has_image_suffix(file.name) or file.suffix.lower() == ".tar") and file.is_file()


def _open(path: Path) -> Iterator[ImageFile]:
    if path.suffix.lower() == ".tar" and path.is_file():
        yield from _of_tar(path)
    else:
        yield ImageFile(str(path), partial(_read_file, path), path, Span(path))


def name_of_member(shard: Path | str, member: str) -> str:
    """The name of an image in a shard. `member_of_name` takes it apart."""
    return f"{shard}: {member}"


def member_of_name(name: str, shard: str) -> str:
    """The path of an image within its shard."""
    return name.removeprefix(name_of_member(shard, ""))


def shard_of_name(name: str) -> str | None:
    """The shard of an image of which only the name is known; None if the name is not that of a member.

    It ends at the first `.tar: `. That is wrong for a shard in a folder whose own name holds this.
    """
    member = _MEMBER.match(name)
    return member["shard"] if member else None


def _of_tar(path: Path) -> Iterator[ImageFile]:
    """The images of a shard, with or without captions. If the shard is damaged, the last one raises an error that says
    so when it is read."""
    count = 0
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := next_member(tar)) is not None:
                if member.isreg() and is_image_name(member.name):
                    count += 1
                    if member.offset_data + member.size > path.stat().st_size:
                        raise tarfile.ReadError(f"it ends within {member.name}")
                    span = Span(path, member.offset_data, member.size)
                    yield ImageFile(name_of_member(path, member.name), span.read, None, span)
            if 0 < path.stat().st_size - tar.offset < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends within a header")  # tarfile takes that for the end of the tar
    except (tarfile.TarError, OSError) as error:
        read = partial(_refuse, f"{path}: not a whole uncompressed tar file ({error})", error)
        yield ImageFile(f"{path}", read, hides_others=True)
    else:
        if not count:
            yield ImageFile(f"{path}", partial(_refuse, f"{path}: holds no images ({_suffixes()})"))


def _of_table(argument: str) -> Iterator[ImageFile]:
    table = _Table(argument)
    for index in range(len(table.source)):
        name, span = writable(table.source.name(index)), table.span(index)
        yield ImageFile(name, partial(table.read, index), None, span, partial(table.fields, index))


class _Table:
    """A table of images. Another process gets only its name, and opens the table once."""

    def __init__(self, argument: str) -> None:
        from grr_coca.data.sources.open import open_source  # late: most images are files of their own

        self.argument = argument
        self.source: PairSource = open_source(argument, needs_captions=False)

    def __reduce__(self) -> tuple[Callable[[str], "_Table"], tuple[str]]:
        return _opened, (self.argument,)

    def read(self, index: int) -> bytes:
        from grr_coca.data.sources.listed import ListedPairs

        return self.source.image(index) if isinstance(self.source, ListedPairs) else self.source[index].image

    def span(self, index: int) -> Span | None:
        from grr_coca.data.sources.listed import ListedPairs

        path = self.source.image_path(index) if isinstance(self.source, ListedPairs) else None
        return Span(path) if path else None

    def fields(self, index: int) -> Mapping[str, object]:
        from grr_coca.data.sources.listed import ListedPairs

        return self.source.fields(index) if isinstance(self.source, ListedPairs) else {}


@lru_cache(maxsize=4)
def _opened(argument: str) -> _Table:
    return _Table(argument)


def _read_file(path: Path) -> bytes:
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        size = 0  # `read_whole` says what is wrong
    _require_bytes(size, str(path))
    return read_whole(path)


def _require_bytes(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise BadSample(f"{name}: an image of {size:,} bytes, more than the limit of {MAX_BYTES:,}", Cause.TOO_LARGE)


def _refuse(message: str, cause: Exception | None = None) -> bytes:
    raise UserError(message) from cause


def _suffixes() -> str:
    return ", ".join(f".{suffix}" for suffix in sorted(IMAGE_SUFFIXES))


Decoded = tuple[ImageFile, Image.Image | UserError]
Item = TypeVar("Item")
Done = TypeVar("Done")


def decoded(files: Iterable[ImageFile], preprocess: "Preprocess", batch_size: int) -> Iterator[list[Decoded]]:
    """Batches of images, cut to the model's size, or what is wrong with each; in order."""

    def decode(file: ImageFile) -> Decoded:
        try:
            # Scaled to the model's size at once, because two batches of large photographs would fill the memory.
            return file, preprocess.square(preprocess.decode(file.read(), file.name))
        except UserError as error:
            return file, error

    return done_ahead(files, decode, batch_size)


def done_ahead(items: Iterable[Item], work: Callable[[Item], Done], batch_size: int) -> Iterator[list[Done]]:
    """Results of `work` in batches and in order; threads do the next batch while the caller has one in hand.

    No more than two batches are taken from `items` ahead of what was given.
    """
    waiting: deque[list[Future[Done]]] = deque()
    source = iter(items)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(source, batch_size)):
            waiting.append([pool.submit(work, item) for item in batch])
            if len(waiting) > 1:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
