"""Find the images of files, folders, patterns, tar shards, tables and icon sets, and decode them in the background."""

import errno
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from glob import escape, glob, has_magic
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.common.files import (
    open_regular,
    read_errors,
    read_file_bytes,
    read_regular,
    require_no_url,
    require_nonempty_path,
)
from grr_coca.common.threads import num_threads, thread_pool
from grr_coca.data.feature_image import HEADER
from grr_coca.data.images import MAX_BYTES
from grr_coca.data.sources.base import SCALE_DOWN, SourceImage, SourceReader, require_max_bytes, source_readers
from grr_coca.data.tokenizer import replace_surrogates
from grr_coca.data.walk import IMAGE_SUFFIXES, Exclusions, Walk, has_wanted_suffix, is_image_name

if TYPE_CHECKING:
    from grr_coca.data.preprocess import Preprocess

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".token"})
"""Suffixes of image tables, which are read as sources of pairs."""

_ANY_FOLDERS = re.compile(r"(^|/)\*\*(?:/|$)")
"""Regular expression that finds `**` as a complete part of a path pattern."""

_MEMBER = re.compile(r"(?P<shard>.*?\.tar): ", re.DOTALL | re.IGNORECASE)
"""Pattern of the start of an image's name if the image is in a shard; see `_name_of_member`."""


class ByteRange(NamedTuple):
    """Location of the bytes of an image: `size` bytes of `file`, starting at `offset`.

    If `offset` is None, the image is the entire file. If only `size` is None, the image ends at the end of the file.
    """

    file: Path
    offset: int | None = None
    size: int | None = None

    def read(self) -> bytes:
        """Read the bytes of the image.

        Raises:
            UserError: If the file does not exist, cannot be read or is not a regular file, or if the image has more
                than `MAX_BYTES` bytes.
        """

        def check_size(size: int) -> None:
            require_max_bytes(size, MAX_BYTES, str(self.file), SCALE_DOWN)

        check_size(self.size or 0)
        with read_errors(self.file):
            if self.offset is None:
                return read_regular(self.file, check_size)
            with open_regular(self.file) as file:
                file.seek(self.offset)
                return file.read(MAX_BYTES if self.size is None else self.size)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image to be read later.

    For a separate file, only the name is stored, because a folder may have hundreds of thousands of files.

    Attributes:
        name: Name of the image in results. For a separate file, this is the path.
        source: Function that returns the bytes of the image, or raises `UserError` if they cannot be read. None for a
            separate file.
        part: Location of the bytes in a larger file. None if no file contains the bytes unchanged.
        fields: Function that returns the other columns of the image's row in a table.
        hides_others: Whether this entry represents a folder or shard that could not be read and may contain more
            images.
        keywords: Keywords of the image in its icon set.
    """

    name: str
    source: Callable[[], bytes] | None = None
    part: ByteRange | None = None
    fields: Callable[[], Mapping[str, object]] = dict
    _: KW_ONLY
    hides_others: bool = False
    keywords: tuple[str, ...] = ()

    def read(self) -> bytes:
        """Read the bytes of the image.

        Raises:
            UserError: If the image cannot be read, or has more than `MAX_BYTES` bytes.
        """
        return ByteRange(Path(self.name)).read() if self.source is None else self.source()

    def read_or_error(self) -> bytes | UserError:
        """Return the bytes of the image, or the error if they cannot be read or do not fit into memory."""
        try:
            return self.read()
        except UserError as error:
            return error
        except MemoryError:  # the other images may be smaller
            return UserError(
                f"{self.name}: not enough memory to read this image; close other programs or use a smaller image"
            )

    @property
    def path(self) -> Path | None:
        """Path of a separate file. None for any other image."""
        return Path(self.name) if self.source is None else None

    @property
    def span(self) -> ByteRange | None:
        """Location of the bytes in a file. None if no file contains them unchanged."""
        return ByteRange(Path(self.name)) if self.source is None else self.part


def find_images(arguments: Sequence[str], exclusions: Exclusions | None = None) -> list[ImageFile]:
    """Find the images of several arguments, in order and without repetition of names.

    Args:
        arguments: Files, folders, patterns, tar shards, tables or icon sets; see `iterate_images`.
        exclusions: Rules that exclude files and folders. If None, only those that `Exclusions` always excludes.

    Raises:
        UserError: If there are no arguments, an argument is empty or contains no image, or a table cannot be read. A
            missing or unreadable image raises an error only when it is read.
    """
    if not arguments:
        raise UserError("no images given; pass image files, folders, patterns, .tar shards or tables of pairs")
    exclusions = exclusions or Exclusions()
    images = (image for argument in arguments for image in iterate_images(argument, exclusions))
    found = list({image.name: image for image in images}.values())
    if not found:
        raise UserError(f"no images; {exclusions}" if str(exclusions) else f"{', '.join(arguments)}: no images")
    return found


def iterate_images(argument: str, exclusions: Exclusions | None = None) -> Iterator[ImageFile]:
    """Yield the images of one argument, which is a file, folder, pattern, shard, table or icon set.

    Folders are searched recursively, and files without an image suffix are skipped. If the argument itself is a file,
    it counts as an image, regardless of its suffix.

    Links to folders are followed, but each folder is searched only once; see `Walk`. A missing file and an unreadable
    folder or shard are yielded as entries that raise an error when they are read. A file that `exclusions` excludes is
    not yielded.

    Raises:
        UserError: If the argument is empty, cannot be accessed, is a folder or pattern without images or a URL that is
            taken for a pattern, or is a table or icon set that cannot be read.
    """
    exclusions = exclusions or Exclusions()
    require_nonempty_path(argument)
    path = Path(argument)
    if is_forbidden(argument):
        raise UserError(f"{argument}: cannot be read ({os.strerror(errno.EACCES)})")
    for reader in source_readers(argument):
        images = reader.images(argument)
        if images is not None:
            yield from _images_of_reader(reader, images, argument, exclusions)
            return
    if (path / HEADER).is_file():
        yield from _images_of_table(argument)
    elif path.is_dir():
        nothing = f"{argument}: no images in this folder (searched for {_suffixes()}, .tar)"
        yield from _require_any(_images_in_folder(path, exclusions), nothing, exclusions)
    elif not path.exists() and has_magic(argument):
        require_no_url(argument)
        yield from _require_any(
            _images_of_pattern(argument, exclusions), f"{argument}: no image matches this pattern", exclusions
        )
    elif Path(argument.partition("#")[0]).suffix.lower() in TABLE_SUFFIXES:
        yield from _images_of_table(argument)
    elif _is_stream(path):
        yield ImageFile(str(path), partial(read_file_bytes, path))
    elif not exclusions.excludes_file(path.name, path.name, keep_hidden=True):
        yield from _open(str(path))


def _images_of_reader(
    reader: SourceReader, images: Sequence[SourceImage], argument: str, exclusions: Exclusions
) -> Iterator[ImageFile]:
    """Yield the images that a reader of another kind of source has found, such as the icons of an icon set."""
    for image in images:
        if exclusions.excludes_file(image.inner, image.inner, keep_hidden=True):
            continue
        name = replace_surrogates(image.name)
        span = ByteRange(image.file, image.offset, image.size)
        problem = f"{name}: {image.problem}"
        read = partial(_raise, problem) if image.problem else partial(_read_source_image, reader, argument, span)
        yield ImageFile(name, read, span, partial(dict, image.fields), keywords=image.keywords)


def _read_source_image(reader: SourceReader, argument: str, span: ByteRange) -> bytes:
    if not span.file.exists():  # the cache was cleared, or belongs to another machine
        reader.images(argument)
    return span.read()


def _is_stream(path: Path) -> bool:
    """Return whether an argument is a stream such as `/dev/stdin` or `<(curl …)`.

    Such streams are read, even if their content is not available yet. Pipes in folders are not read.
    """
    try:
        return path.is_fifo() or path.is_char_device()
    except (OSError, ValueError):
        return False


def is_forbidden(path: str) -> bool:
    """Return whether permissions make it impossible to check that a path exists."""
    try:
        os.lstat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        pass
    return False


def _require_any(images: Iterator[ImageFile], message: str, exclusions: Exclusions) -> Iterator[ImageFile]:
    first = next(images, None)
    if first is None:
        raise UserError(f"{message}; {exclusions}" if str(exclusions) else message)
    yield first
    yield from images


def _images_of_pattern(pattern: str, exclusions: Exclusions) -> Iterator[ImageFile]:
    pattern = pattern.replace(os.sep, "/")
    fixed = pattern[: pattern.rfind("/", 0, re.search(r"[*?[]", pattern).start()) + 1]  # type: ignore[union-attr]
    for name in sorted(set(_expand_pattern(pattern, exclusions))):
        path, below = Path(name), name.replace(os.sep, "/").removeprefix(fixed).removeprefix("./")
        if not has_wanted_suffix(name):
            continue
        if not path.exists():
            exclusions.count_broken_link(path.name, below, keep_hidden=True)
        elif path.is_file() and not exclusions.excludes_file(path.name, below, keep_hidden=True):
            yield from _open(str(path))


def _expand_pattern(pattern: str, exclusions: Exclusions) -> Iterator[str]:
    """Yield the paths that match a pattern.

    For `**`, the subfolders are walked, because `glob` would follow links in circles.
    """
    stars = _ANY_FOLDERS.search(pattern)
    if stars is None:
        yield from glob(pattern)  # noqa: PTH207 (an absolute pattern)
        return
    above, rest = pattern[: stars.start()], pattern[stars.end() :] or "*"
    for top in glob(above or stars[1] or "."):  # noqa: PTH207
        for folder, *_ in Walk(top, exclusions):
            yield from _expand_pattern(f"{escape(folder or '.').replace(os.sep, '/').rstrip('/')}/{rest}", exclusions)


def _images_in_folder(root: Path, exclusions: Exclusions) -> Iterator[ImageFile]:
    """Yield the images below a folder.

    An unreadable folder is represented by an image that raises the error when the image is read.
    """
    walk = Walk(str(root), exclusions)
    for folder, files, broken_links in walk:
        yield from _unreadable_folders(walk.errors)
        for name in broken_links:
            exclusions.count_broken_link(name, walk.path(folder, name))
        for name in files:
            if not exclusions.excludes_file(name, walk.path(folder, name)):
                yield from _open(os.path.join(folder, name))  # noqa: PTH118 (a tenth of the time of pathlib)


def _unreadable_folders(errors: list[OSError]) -> Iterator[ImageFile]:
    while errors:
        error = errors.pop(0)
        read = partial(_raise, f"{error.filename}: cannot be read ({error.strerror or error})", error)
        yield ImageFile(str(error.filename), read, hides_others=True)


def _open(path: str) -> Iterator[ImageFile]:
    if path.lower().endswith(".tar") and Path(path).is_file():
        yield from _images_of_tar(Path(path))
    else:
        yield ImageFile(path)


def _name_of_member(shard: Path | str, member: str) -> str:
    """Return the name of an image in a shard. `member_of_name` is the inverse function."""
    return f"{shard}: {member}"


def member_of_name(name: str, shard: str) -> str:
    """Return the path of an image within its shard, from the name of the image. Other names are unchanged."""
    return name.removeprefix(_name_of_member(shard, ""))


def shard_of_name(name: str) -> str | None:
    """Return the shard that the name of an image contains, or None if the image is not in a shard.

    The path of the shard is assumed to end at the first `.tar: `. This is wrong if the name of a folder in the path
    contains `.tar: `.
    """
    member = _MEMBER.match(name)
    return member["shard"] if member else None


def _images_of_tar(path: Path) -> Iterator[ImageFile]:
    """Yield the images of a shard, with or without captions.

    If the shard is corrupt, the last yielded entry raises an error when it is read. If it has no images, the only
    yielded entry raises an error.
    """
    import tarfile  # lazy imports, because most images are separate files

    from grr_coca.data.sources.tar import block_at_end, next_member

    count = 0
    try:
        with open_regular(path) as shard, tarfile.open(fileobj=shard, mode="r:") as tar:
            while (member := next_member(tar)) is not None:
                if member.isreg() and is_image_name(member.name):
                    count += 1
                    if member.offset_data + member.size > path.stat().st_size:
                        raise tarfile.ReadError(f"the file ends within {member.name}")
                    span = ByteRange(path, member.offset_data, member.size)
                    yield ImageFile(_name_of_member(path, member.name), span.read, span)
            if block_at_end(tar).strip(b"\0"):
                # tarfile treats an invalid header as the end of the archive
                raise tarfile.ReadError("a header is corrupt or truncated")
    except (tarfile.TarError, OSError) as error:
        read = partial(_raise, f"{path}: not a complete uncompressed tar file ({error})", error)
        yield ImageFile(f"{path}", read, hides_others=True)
    else:
        if not count:
            yield ImageFile(f"{path}", partial(_raise, f"{path}: has no images ({_suffixes()})"))


def _images_of_table(argument: str) -> Iterator[ImageFile]:
    table = _Table(argument)
    for index in range(len(table.source)):
        name, span = replace_surrogates(table.source.name(index)), table.span(index)
        yield ImageFile(name, partial(table.read, index), span, partial(table.fields, index))


class _Table:
    """A table of images, or a folder of features.

    Only the argument is serialized, so each worker process opens the table again.
    """

    def __init__(self, argument: str) -> None:
        # lazy import, because most images are separate files
        from grr_coca.data.sources.feature_pairs import FeaturePairs
        from grr_coca.data.sources.listed import ListedPairs
        from grr_coca.data.sources.open import open_source

        self.argument = argument
        self.source = open_source(argument, needs_captions=False)
        self._listed = self.source if isinstance(self.source, ListedPairs | FeaturePairs) else None

    def __reduce__(self) -> tuple[Callable[[str], "_Table"], tuple[str]]:
        return _open_table, (self.argument,)

    def read(self, index: int) -> bytes:
        return self.source[index].image if self._listed is None else self._listed.image(index)

    def span(self, index: int) -> ByteRange | None:
        path = None if self._listed is None else self._listed.image_path(index)
        return ByteRange(path) if path else None

    def fields(self, index: int) -> Mapping[str, object]:
        return {} if self._listed is None else self._listed.fields(index)


@lru_cache(maxsize=4)
def _open_table(argument: str) -> _Table:
    return _Table(argument)


def _raise(message: str, cause: Exception | None = None) -> bytes:
    raise UserError(message) from cause


def _suffixes() -> str:
    return ", ".join(f".{suffix}" for suffix in sorted(IMAGE_SUFFIXES))


# --- Decoding in the background

_Decoded = tuple[ImageFile, Image.Image | UserError]
_ITEMS_PER_TASK = 8
"""Minimum number of items per thread task. More items reduce the overhead, and fewer items balance the load better."""
_SECONDS_PER_TASK = 0.25
"""Duration up to which a task gets more items, including the time that it waits for a helper."""
Item = TypeVar("Item")
Done = TypeVar("Done")


def decode_in_background(
    files: Iterable[ImageFile], preprocess: "Preprocess", batch_size: int
) -> Iterator[list[_Decoded]]:
    """Decode images in the background, and yield them in batches and in order.

    Each image is yielded with a square of the model's input size, or with a `UserError` if the image cannot be read or
    decoded.

    Args:
        files: Images to decode. At most two batches are taken before their results are yielded.
        preprocess: Preprocessing of the model.
        batch_size: Number of images per batch; the last batch may be smaller.
    """

    def decode(together: Sequence[ImageFile]) -> Iterator[_Decoded]:
        return zip(
            together, preprocess.decode_squares((file.read_or_error(), file.name) for file in together), strict=True
        )

    return map_in_background(files, decode, batch_size)


def map_in_background(
    items: Iterable[Item], work: Callable[[Sequence[Item]], Iterable[Done]], batch_size: int
) -> Iterator[list[Done]]:
    """Yield the results of `work` in batches and in order.

    Threads compute the next batch while the caller uses the current batch.

    `work` takes a few items and returns a result for each item. It is called in threads, and its errors are passed on.
    If the items take little time, later calls get more items, so that there are fewer calls. At most two batches are
    taken from `items` before their results are yielded.
    """
    waiting: deque[list[Future[tuple[list[Done], float]]]] = deque()
    source = iter(items)
    size, largest = _ITEMS_PER_TASK, max(_ITEMS_PER_TASK, 2 * batch_size // num_threads())

    def timed(part: Sequence[Item]) -> tuple[list[Done], float]:
        began = time.perf_counter()
        return list(work(part)), time.perf_counter() - began

    def results() -> list[Done]:
        nonlocal size
        parts = [future.result() for future in waiting.popleft()]
        done = [one for part, _ in parts for one in part]
        seconds_per_item = sum(seconds for _, seconds in parts) / max(1, len(done))
        size = max(_ITEMS_PER_TASK, min(largest, int(_SECONDS_PER_TASK / max(seconds_per_item, 1e-6))))
        return done

    with thread_pool() as pool:
        while batch := list(islice(source, batch_size)):
            parts = (batch[start : start + size] for start in range(0, len(batch), size))
            waiting.append([pool.submit(timed, part) for part in parts])
            if len(waiting) > 1:
                yield results()
        while waiting:
            yield results()
