"""Tar shards in the layout of img2dataset: the members `KEY.jpg`, `KEY.txt` and others are next to each other.

`KEY.txt` has a caption a line. `KEY.json` may have the list `captions`, which counts then.

An index has the offset of each part. So a pair takes one or two reads, in any order, and nothing is extracted. The
index of a large shard is made once from its headers, and saved in a small file beside the shard, or in the user's cache
if that folder is not writable. The file is a line of JSON, which says which state of the shard it describes, and two
raw arrays. Nothing in it can be executed.
"""

import contextlib
import hashlib
import json
import logging
import os
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from grr_coca.common.files import open_to_read, read_at, user_cache, write_whole
from grr_coca.data.order import BLOCK, PLAIN_SHUFFLE
from grr_coca.data.sources.base import (
    MAX_TEXT,
    BadSample,
    Cause,
    PairSource,
    RawPair,
    caption_lines,
    decode_text,
    digest_file,
    digest_header,
    locate,
)
from grr_coca.data.sources.tar import CAUSES, ROW, ShardIndex, scan_shard

_log = logging.getLogger(__name__)

_MAX_OPEN = 256
"""Maximum number of shards of a source that a process keeps open, each with two file descriptors. A window of the
training order has as many blocks."""

_OPEN_FILES = 8192
"""Number of open files to request. Many systems allow 256 or 1,024 by default, and more on request."""

_MESSAGES = {
    Cause.NO_IMAGE: "a caption without an image; expected a member {key}.jpg (or .png, .webp …)",
    Cause.NO_CAPTION: "an image without a caption; expected a member {key}.txt",
    Cause.DUPLICATE_KEY: "an earlier pair of the shard has the same key",
    Cause.CUT_OFF: "the shard ends in the middle of this pair; copy or download it again",
    Cause.EMPTY_FILE: "not an image: the file is empty",
    Cause.TOO_LARGE: "the image file is too large",
    Cause.FORBIDDEN_PATH: "the name leaves the shard",
}


class TarShards(PairSource):
    """The pairs of one or more tar shards, in the order of the files. See the module for the format."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.truncated: list[Path] = []
        self._kept: dict[int, ShardIndex] = {}
        self._places: dict[int, Path] = {}
        counts = [self._index_shard(shard) for shard in range(len(self.paths))]
        self._ends = np.cumsum(np.asarray(counts, dtype=np.int64))
        # At most a quarter of the limit, because a run has several sources.
        num_open = min(_MAX_OPEN, allow_open_files() // 8)
        self._indices = HandleCache(self._load_index, None, num_open)
        self._files = HandleCache(self._open, os.close, num_open)
        self._advised = HandleCache(self._advise, None, 2 * num_open)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def digest_parts(self) -> Iterator[bytes | memoryview]:
        """Name and size of each shard."""
        yield digest_header(self)
        yield from map(digest_file, self.paths)

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        shard, row = locate(self._ends, index)
        self._require_sound(shard, row)
        if len(self) > PLAIN_SHUFFLE:
            _ = self._advised[index // BLOCK]
        captions = self._captions(shard, row)
        image = self._read(shard, row, "image")
        key, name = self._indices[shard].key(row), self._name(shard, row)
        return RawPair(key, name, image, captions[0], more_captions=captions[1:])

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of a pair."""
        shard, row = locate(self._ends, index)
        self._require_sound(shard, row)
        return self._captions(shard, row)

    def name(self, index: int) -> str:
        """The name of a pair, for messages."""
        return self._name(*locate(self._ends, index))

    def place(self, index: int) -> str:
        """The shard of a pair."""
        return str(self.paths[locate(self._ends, index)[0]])

    def _index_shard(self, shard: int) -> int:
        index, place = _open_index(self.paths[shard])
        if not index.is_whole:
            self.truncated.append(self.paths[shard])
            _log.warning(
                "%s: truncated; the %d complete pairs are used; copy or download it again",
                self.paths[shard],
                int((index.rows["cause"] == 0).sum()),
            )
        if place is None:
            self._kept[shard] = index
        else:
            self._places[shard] = place
        return len(index)

    def _load_index(self, shard: int) -> ShardIndex:
        if shard in self._kept:
            return self._kept[shard]
        index = _read_index(self._places[shard], self.paths[shard]) or _open_index(self.paths[shard])[0]
        if len(index) != self._ends[shard] - (self._ends[shard - 1] if shard else 0):
            raise BadSample(f"{self.paths[shard]}: has changed since it was opened; start again", Cause.UNREADABLE)
        return index

    def _open(self, shard: int) -> int:
        return open_to_read(self.paths[shard])

    def _name(self, shard: int, row: int) -> str:
        return f"{self.paths[shard]}: {self._indices[shard].key(row)}"

    def _require_sound(self, shard: int, row: int) -> None:
        code = int(self._indices[shard].rows[row]["cause"])
        if code:
            cause, key = CAUSES[code - 1], self._indices[shard].key(row)
            raise BadSample(f"{self._name(shard, row)}: {_MESSAGES.get(cause, cause).format(key=key)}", cause)

    def _captions(self, shard: int, row: int) -> tuple[str, ...]:
        if self._indices[shard].rows[row]["json_size"]:
            try:
                captions = json.loads(self._read(shard, row, "json"))["captions"]
                if isinstance(captions, list) and captions and all(isinstance(caption, str) for caption in captions):
                    return tuple(captions)
            except (ValueError, KeyError, TypeError, RecursionError):
                pass  # use those in KEY.txt
        return caption_lines(decode_text(self._read(shard, row, "text"), f"{self._name(shard, row)}.txt"))

    def _read(self, shard: int, row: int, part: str) -> bytes:
        entry = self._indices[shard].rows[row]
        offset, size = int(entry[f"{part}_block"]) * tarfile.BLOCKSIZE, int(entry[f"{part}_size"])
        if part != "image" and size > MAX_TEXT:
            raise BadSample(
                f"{self._name(shard, row)}: too many bytes in a caption: {size:,} (limit {MAX_TEXT:,})",
                Cause.TOO_LARGE,
            )
        try:
            content = read_at(self._files[shard], size, offset)
        except OSError as error:
            message = f"{self._name(shard, row)}: cannot be read ({error.strerror})"
            raise BadSample(message, Cause.UNREADABLE) from error
        if len(content) != size:
            raise BadSample(f"{self._name(shard, row)}: the shard is shorter than before", Cause.UNREADABLE)
        return content

    def _advise(self, block: int) -> None:
        """Ask the system to read a block of the training order ahead, because its other pairs are needed soon."""
        if not hasattr(os, "posix_fadvise"):
            return
        shard, first = locate(self._ends, block * BLOCK)
        rows = self._indices[shard].rows
        last = min(first + BLOCK, len(rows)) - 1
        start = int(rows[first]["image_block"]) * tarfile.BLOCKSIZE
        end = int(rows[last]["image_block"]) * tarfile.BLOCKSIZE + int(rows[last]["image_size"])
        if end > start:
            with contextlib.suppress(OSError):  # not every file system can, and reading says what is wrong with a shard
                os.posix_fadvise(self._files[shard], start, end - start, os.POSIX_FADV_WILLNEED)


# --- The index of a shard, in a file

_VERSION = 2
_HEADER_SIZE = 512
MIN_SHARD_SIZE = 2**24
"""Smaller shards are indexed at each start, which takes a fraction of a second, and no file is written."""


def _open_index(path: Path) -> tuple[ShardIndex, Path | None]:
    """The index of a shard, and the path of its file. The path is None if the index is in no file.

    The index is made now if the file is missing, outdated or damaged.

    Raises:
        UserError: the shard cannot be indexed.
    """
    if not path.is_file() or path.stat().st_size < MIN_SHARD_SIZE:
        return scan_shard(path), None
    places = (path.with_name(path.name + ".index"), user_cache() / _cache_name(path))
    for place in places:
        index = _read_index(place, path)
        if index is not None:
            return index, place
    state = _state(path)
    index = scan_shard(path)
    if _state(path) != state:
        return index, None  # the shard is still being written, so the index is not saved
    for place in places:
        with contextlib.suppress(OSError):
            write_index(index, place, path)
            return _read_index(place, path) or index, place
    return index, None


def write_index(index: ShardIndex, place: Path, shard: Path) -> None:
    """Write the index of `shard` to the file `place`, for `_read_index`."""
    if place.parent != shard.parent:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = index.rows.tobytes() + index.keys
    header: dict[str, object] = {**_state(shard), "pairs": len(index), "is_whole": index.is_whole}
    header["digest"] = _digest(header, content)
    line = json.dumps(header).encode().ljust(_HEADER_SIZE - 1) + b"\n"
    write_whole(place, line + content)


def _read_index(place: Path, shard: Path) -> ShardIndex | None:
    """The index in a file, mapped into memory; None if it is missing, damaged, or of another state of the shard."""
    try:
        mapped = np.memmap(place, np.uint8, "r")
        header = json.loads(mapped[:_HEADER_SIZE].tobytes())
        content = mapped[_HEADER_SIZE:]
        digest = header.pop("digest")
        is_of_shard = all(header[key] == value for key, value in _state(shard).items())
        if not is_of_shard or digest != _digest(header, content.data):
            return None
        end = header["pairs"] * ROW.itemsize
        rows = content[:end].view(ROW)
        if len(rows) and rows["cause"].max() > len(CAUSES):
            return None
        return ShardIndex(rows, content[end:].tobytes(), bool(header["is_whole"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _state(shard: Path) -> dict[str, int]:
    status = shard.stat()
    return {"version": _VERSION, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _cache_name(path: Path) -> str:
    whole = str(path.absolute()).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(whole, digest_size=16).hexdigest() + ".index"


def _digest(header: dict[str, object], content: bytes | memoryview) -> str:
    digest = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    digest.update(content)
    return digest.hexdigest()


# --- Open files

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class HandleCache(Generic[K, T]):
    """A cache that opens items by key, and keeps the `size` most recently used ones. Dropped items are closed.

    A copy in another process starts empty, because open files and memory maps are not valid there.
    """

    def __init__(self, open_: Callable[[K], T], close: Callable[[T], None] | None, size: int) -> None:
        self._open = open_
        self._close = close
        self._size = size
        self._items: OrderedDict[K, T] = OrderedDict()

    def __getitem__(self, key: K) -> T:
        if key in self._items:
            self._items.move_to_end(key)
            return self._items[key]
        item = self._items[key] = self._open(key)
        if len(self._items) > self._size:
            _, oldest = self._items.popitem(last=False)
            if self._close is not None:
                self._close(oldest)
        return item

    def __del__(self) -> None:
        if self._close is not None:
            for item in self._items.values():
                self._close(item)

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_items": OrderedDict()}


def allow_open_files() -> int:
    """Raise the limit of open files of this process to `_OPEN_FILES`, or as far as the system allows.

    Returns:
        The new limit. Windows allows as many from the beginning.
    """
    try:
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, setrlimit
    except ImportError:
        return _OPEN_FILES
    soft, hard = (_OPEN_FILES if limit == RLIM_INFINITY else limit for limit in getrlimit(RLIMIT_NOFILE))
    allowed = min(hard, _OPEN_FILES)
    if allowed <= soft:
        return soft
    setrlimit(RLIMIT_NOFILE, (allowed, getrlimit(RLIMIT_NOFILE)[1]))
    return allowed
