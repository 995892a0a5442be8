"""Tar shards in the layout of img2dataset. Members with the same key, such as `KEY.jpg` and `KEY.txt`, are adjacent.

`KEY.txt` has one caption per line. `KEY.json` may contain a list `captions`, which takes precedence.

An index contains the offset of each part. Therefore, pairs can be read in any order, each with one or two reads, and
nothing is extracted. The index of a large shard is created once from its headers, and saved in a small file next to the
shard, or in the user's cache if the shard's folder is not writable. The index file starts with one line of JSON that
identifies the state of the shard, followed by raw arrays. It contains nothing executable.

The index of a shard in an object store is always in the user's cache; see `index_remote`. It contains captions and
checksums of images, and the images themselves are read through a `BlockCache`. Such a shard can also be a Parquet
table; see `remote_parquet`.
"""

import contextlib
import hashlib
import json
import logging
import mmap
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grr_coca.common.errors import DiskError, UserError
from grr_coca.common.files import HandleCache, LocalFile, raise_open_file_limit, user_cache, write_bytes_atomic
from grr_coca.common.remote import RemoteFile
from grr_coca.data.order import BLOCK, PLAIN_SHUFFLE
from grr_coca.data.sources.base import (
    MAX_TEXT,
    BadSample,
    Cause,
    PairSource,
    RawPair,
    digest_file,
    digest_header,
    locate_part,
    require_max_bytes,
)
from grr_coca.data.sources.block_cache import BlockCache, RemoteBlock
from grr_coca.data.sources.remote_parquet import RemoteTable, largest_row_group, scan_table
from grr_coca.data.sources.tar import CAUSES, ROW_DTYPE, ShardIndex, scan_shard, with_content
from grr_coca.data.tokenizer import caption_lines, decode_text

_log = logging.getLogger(__name__)

_MAX_OPEN = 256
"""Maximum number of shards of a source that a process keeps open, each with two file descriptors. It equals the number
of blocks in a window of the training order."""

CACHE_BYTES, _CACHED_PAIRS = 2**33, 2 * PLAIN_SHUFFLE
"""Minimum size, in bytes, of the cache of remote blocks, and the number of pairs for which the cache is enlarged if
they need more bytes."""

_DENSE = 4
"""A range of a shard is read as one block only if one in this many of its pairs, and of its bytes, is needed."""

_MESSAGES = {
    Cause.NO_IMAGE: "the caption has no image; expected a member {key}.jpg (or .png, .webp …)",
    Cause.NO_CAPTION: "the image has no caption; expected a member {key}.txt",
    Cause.DUPLICATE_KEY: "an earlier pair of the shard has the same key; rename one of them",
    Cause.CUT_OFF: "the shard ends in the middle of this pair; copy or download it again",
    Cause.EMPTY_FILE: "not an image: the file is empty; replace it",
    Cause.TOO_LARGE: "the image file is too large; scale the image down first",
    Cause.FORBIDDEN_PATH: "the name leaves the shard; rename the member",
}


class TarShards(PairSource):
    """Pairs of one or more tar shards, in the order of the files. The module's docstring describes the format.

    Args:
        paths: Shards on this machine, and remote shards that `index_remote` has indexed.

    Attributes:
        truncated: The shards that are truncated. Only their complete pairs are valid.

    Raises:
        UserError: If a shard cannot be indexed, or a remote shard is not indexed.
    """

    def __init__(self, paths: Sequence[Path | RemoteFile]) -> None:
        self.paths = list(paths)
        self.truncated: list[Path | RemoteFile] = []
        self._unsaved: dict[int, ShardIndex] = {}
        self._index_paths: dict[int, Path] = {}
        self._content_digests: dict[int, str] = {}
        self._read_at_once = 1
        counts = [self._index_shard(shard) for shard in range(len(self.paths))]
        self._ends = np.cumsum(np.asarray(counts, dtype=np.int64))
        # These files take at most a quarter of the limit, because a run has several sources.
        num_open = min(_MAX_OPEN, raise_open_file_limit() // 8)
        self._cache = BlockCache(self._cache_bytes())
        self._indices = HandleCache(self._load_index, None, num_open)
        self._tables = HandleCache(self._open_table, None, num_open)
        self._files = HandleCache(self._open, LocalFile.close, num_open)
        self._blocks = HandleCache(self._cache.open, LocalFile.close, num_open)
        self._expected: dict[int, dict[int, int]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def is_remote(self) -> bool:
        """Whether at least one shard is remote."""
        return any(isinstance(path, RemoteFile) for path in self.paths)

    def digest_parts(self) -> Iterator[bytes | memoryview]:
        """Yield the name and size of each local shard, and the name and a content digest of each remote shard."""
        yield digest_header(self)
        for shard, path in enumerate(self.paths):
            if isinstance(path, RemoteFile):
                yield f"{path.name}\0{self._content_digests[shard]} ".encode("utf-8", "surrogateescape")
            else:
                yield digest_file(path)

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        shard, row = locate_part(self._ends, index)
        self._require_valid(shard, row)
        captions = self._captions(shard, row)
        image = self._read(shard, row, "image")
        key, name = self._indices[shard].key(row), self._name(shard, row)
        return RawPair(key, name, image, captions[0], more_captions=captions[1:])

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of a pair."""
        shard, row = locate_part(self._ends, index)
        self._require_valid(shard, row)
        return self._captions(shard, row)

    def name(self, index: int) -> str:
        """Return the name of a pair, for messages."""
        return self._name(*locate_part(self._ends, index))

    def container(self, index: int) -> str:
        """Return the shard of a pair."""
        return str(self.paths[locate_part(self._ends, index)[0]])

    def expect(self, indices: Sequence[int] | np.ndarray) -> None:
        """Announce that the given pairs will be read at about the same time.

        When one of the pairs is read from a remote shard, the part of the shard that contains these pairs is fetched as
        one block. If the source is large, the system starts to read this part of a local shard in advance.
        """
        for shard, start, end in self._spans(indices):
            self._expected.setdefault(shard, {})[start] = end
            path = self.paths[shard]
            if isinstance(path, Path) and len(self) > PLAIN_SHUFFLE:
                with contextlib.suppress(OSError):  # reading a pair will report errors of the shard
                    self._files[shard].will_need(start, end)

    def fetch(self, indices: Sequence[int] | np.ndarray) -> None:
        """Fetch the remote blocks that `expect` announces, into the cache.

        Raises:
            UserError: If a block cannot be fetched, or the disk is full.
        """
        for shard, start, end in self._spans(indices):
            path = self.paths[shard]
            if isinstance(path, RemoteFile):
                self._cache.fetch(self._block(shard, start, end))

    def _index_shard(self, shard: int) -> int:
        path = self.paths[shard]
        if isinstance(path, RemoteFile):
            return self._count_remote_pairs(shard, path)
        index, index_path = _open_index(path)
        if index_path is None:
            self._unsaved[shard] = index
        else:
            self._index_paths[shard] = index_path
        self._warn_if_truncated(path, index)
        return len(index)

    def _count_remote_pairs(self, shard: int, file: RemoteFile) -> int:
        """Return the number of pairs in a remote shard. Only the header of a complete shard's index is read.

        Raises:
            UserError: If the shard is not indexed, or has changed since.
        """
        index_path = remote_index(file)
        header = _read_header(index_path, file)
        if header is None:
            what = "has changed since it was indexed" if index_path.exists() else "is not indexed yet"
            raise UserError(f"{file}: {what}; run `grr-coca data index` on these shards")
        self._index_paths[shard], self._content_digests[shard] = index_path, str(header["content"])
        self._read_at_once = max(self._read_at_once, int(header.get("group", 1)))
        if not header["is_whole"]:
            self._warn_if_truncated(file, self._load(shard))
        return int(header["pairs"])

    def _warn_if_truncated(self, path: Path | RemoteFile, index: ShardIndex) -> None:
        if not index.is_whole:
            self.truncated.append(path)
            _log.warning(
                "%s: truncated, so only its complete pairs are used (%d); copy or download this file again",
                path,
                int((index.rows["cause"] == 0).sum()),
            )

    def _load_index(self, shard: int) -> ShardIndex:
        if shard in self._unsaved:
            return self._unsaved[shard]
        index = self._load(shard)
        if len(index) != self._ends[shard] - (self._ends[shard - 1] if shard else 0):
            raise BadSample(f"{self.paths[shard]}: has changed since it was opened; start again", Cause.UNREADABLE)
        return index

    def _load(self, shard: int) -> ShardIndex:
        path, index_path = self.paths[shard], self._index_paths[shard]
        index = _read_index(index_path, path)
        if index is not None:
            return index
        if isinstance(path, RemoteFile):
            raise UserError(
                f"{index_path}: the index is corrupt or was replaced; run `grr-coca data index` on {path} again"
            )
        return _open_index(path)[0]

    def _open(self, shard: int) -> LocalFile:
        path = self.paths[shard]
        assert isinstance(path, Path)
        return LocalFile(path)

    def _open_table(self, shard: int) -> RemoteTable:
        file = self.paths[shard]
        assert isinstance(file, RemoteFile)
        return RemoteTable(file, self._indices[shard])

    def _name(self, shard: int, row: int) -> str:
        index = self._indices[shard]
        return f"{self.paths[shard]}: {f'row {row + 1}' if index.footer else index.key(row)}"

    def _require_valid(self, shard: int, row: int) -> None:
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
                pass  # the captions in KEY.txt are used instead
        return caption_lines(decode_text(self._read(shard, row, "text"), f"{self._name(shard, row)}.txt"))

    def _read(self, shard: int, row: int, part: str) -> bytes:
        path, entry = self.paths[shard], self._indices[shard].rows[row]
        offset, size = int(entry[f"{part}_block"]) * tarfile.BLOCKSIZE, int(entry[f"{part}_size"])
        if part != "image":
            require_max_bytes(size, MAX_TEXT, f"{self._name(shard, row)}: the caption")
        if isinstance(path, RemoteFile):
            index = self._indices[shard]
            return self._read_remote(shard, row, offset, size) if part == "image" else index.text(row, part)
        try:
            content = self._files[shard].read(offset, size)
        except OSError as error:
            message = f"{self._name(shard, row)}: cannot be read ({error.strerror})"
            raise BadSample(message, Cause.UNREADABLE) from error
        if len(content) != size:
            raise BadSample(
                f"{self._name(shard, row)}: the shard is shorter than before; do not change it during a run",
                Cause.UNREADABLE,
            )
        return content

    def _read_remote(self, shard: int, row: int, offset: int, size: int) -> bytes:
        """Read an image from its block. If `expect` has not announced the image, it is a separate block.

        Raises:
            UserError: If the image cannot be fetched, or differs from the indexed image. This error is not a
                `BadSample`, because a replacement of the pair would change the training data.
        """
        sums, block = self._indices[shard].image_sums, self._block_of(shard, offset, size)
        assert sums is not None
        for _ in range(2):
            content = self._blocks[block].read(offset - block.start, size)
            if zlib.crc32(content) == sums[row]:
                return content
            self._blocks.discard(block)
            self._cache.drop(block)
            block.file.require_same()
        raise UserError(
            f"{self._name(shard, row)}: the content differs from the index; run `grr-coca data index` on "
            "this shard again"
        )

    def _block_of(self, shard: int, offset: int, size: int) -> RemoteBlock:
        """Return the block that contains the given bytes of a remote shard.

        If `expect` has not announced them, they are a separate block.
        """
        if self._indices[shard].footer:
            return self._block(shard, offset, offset + size)
        for start, end in self._expected.get(shard, {}).items():
            if start <= offset and offset + size <= end:
                return self._block(shard, start, end)
        return self._block(shard, offset, offset + size)

    def _block(self, shard: int, start: int, end: int) -> RemoteBlock:
        """Return the block between two offsets in a remote shard."""
        file = self.paths[shard]
        assert isinstance(file, RemoteFile)
        return self._tables[shard].block(start) if self._indices[shard].footer else RemoteBlock(file, start, end)

    def _spans(self, indices: Sequence[int] | np.ndarray) -> list[tuple[int, int, int]]:
        """Return the shard, start and end of each byte range that contains the images of some pairs.

        If the pairs or their images are sparse, no range is returned, so that not much more than their bytes is read.
        """
        first, last = int(indices[0]), int(indices[-1])
        if len(indices) * _DENSE < last + 1 - first:
            return []
        (first_shard, row), (last_shard, last_row) = locate_part(self._ends, first), locate_part(self._ends, last)
        spans = []
        for shard in range(first_shard, last_shard + 1):
            rows = self._indices[shard].rows
            starts = rows["image_block"].astype(np.int64) * tarfile.BLOCKSIZE
            ends = starts + rows["image_size"]
            valid = np.flatnonzero(rows["cause"][row : last_row + 1 if shard == last_shard else None] == 0) + row
            row = 0
            if not len(valid):
                continue
            if self._indices[shard].footer:
                spans += [(shard, *span) for span in self._tables[shard].spans(valid)]
                continue
            start, end = int(starts[valid].min()), int(ends[valid].max())
            if (end - start) * len(rows) <= _DENSE * int(ends.max()) * len(valid):
                spans.append((shard, start, end))
        return spans

    def _cache_bytes(self) -> int:
        """Return the size, in bytes, of the cache of remote blocks.

        The cache holds the windows of the training order that are being read and fetched, so that no block is fetched
        twice in an epoch. These windows have fewer than `_CACHED_PAIRS` pairs. In a Parquet table, all row groups that
        overlap with a block of the training order are read.
        """
        size = sum(path.size for path in self.paths if isinstance(path, RemoteFile))
        num_kept = _CACHED_PAIRS * (BLOCK + self._read_at_once - 1) // BLOCK
        return max(CACHE_BYTES, int(size * min(1.0, num_kept / max(len(self), 1))))


# --- The index file of a shard

_VERSION = 2
_HEADER_SIZE = 512
_READ_BYTES = 2**24
"""Maximum number of bytes per request while a remote shard is indexed."""

MIN_SHARD_SIZE = 2**24
"""Minimum size, in bytes, of a shard whose index is stored. Smaller shards are indexed again whenever they are opened,
which takes a fraction of a second."""


def _open_index(path: Path) -> tuple[ShardIndex, Path | None]:
    """Return the index of a shard, and the path of the index file. The path is None if the index is not stored.

    The index is created if the file is missing, outdated or corrupt.

    Raises:
        UserError: If the shard cannot be indexed.
    """
    if not path.is_file() or path.stat().st_size < MIN_SHARD_SIZE:
        return scan_shard(path), None
    index_paths = (path.with_name(path.name + ".index"), user_cache() / _cache_name(path))
    for index_path in index_paths:
        index = _read_index(index_path, path)
        if index is not None:
            return index, index_path
    state = _state(path)
    index = scan_shard(path)
    if _state(path) != state:
        return index, None  # the shard is still being written, so the index is not saved
    for index_path in index_paths:
        with contextlib.suppress(OSError):
            write_index(index, index_path, path)
            return _read_index(index_path, path) or index, index_path
    return index, None


def write_index(index: ShardIndex, index_path: Path, shard: Path | RemoteFile) -> None:
    """Write the index of `shard` to the file `index_path`, from which `_read_index` reads it.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    if isinstance(shard, RemoteFile) or index_path.parent != shard.parent:
        index_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = index.rows.tobytes() + index.keys
    header: dict[str, object] = {**_state(shard), "pairs": len(index), "is_whole": index.is_whole}
    if index.image_sums is not None:
        content += index.image_sums.tobytes() + index.footer + index.texts
        header |= {"keys": len(index.keys), "content": hashlib.blake2b(content, digest_size=16).hexdigest()}
        if index.footer:
            header |= {"footer": len(index.footer), "group": largest_row_group(index.footer)}
    header["digest"] = _digest(header, content)
    line = json.dumps(header).encode().ljust(_HEADER_SIZE - 1) + b"\n"
    write_bytes_atomic(index_path, line + content)


def _read_index(index_path: Path, shard: Path | RemoteFile) -> ShardIndex | None:
    """Return the memory-mapped index in a file, or None if the index cannot be used.

    An index cannot be used if the file is missing or corrupt, or if the shard has changed since it was indexed.
    """
    try:
        with index_path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped = np.frombuffer(mapping, np.uint8)
        header = json.loads(mapped[:_HEADER_SIZE].tobytes())
        content = mapped[_HEADER_SIZE:]
        digest = header.pop("digest")
        is_of_shard = all(header[key] == value for key, value in _state(shard).items())
        if not is_of_shard or digest != _digest(header, content.data):
            return None
        if hasattr(mmap, "MADV_DONTNEED"):  # drop the pages that were read for the digest from memory
            mapping.madvise(mmap.MADV_DONTNEED)
        is_remote, size_of_rows = "keys" in header, header["pairs"] * ROW_DTYPE.itemsize
        sizes = [size_of_rows, header.get("keys", len(content) - size_of_rows)]
        sizes += [4 * header["pairs"] if is_remote else 0, header.get("footer", 0)]
        table, keys, sums, footer, texts = np.split(content, np.cumsum(sizes))
        rows = table.view(ROW_DTYPE)
        if len(rows) and rows["cause"].max() > len(CAUSES):
            return None
        image_sums, is_whole = sums.view("<u4") if is_remote else None, bool(header["is_whole"])
        return ShardIndex(rows, keys.data, is_whole, image_sums, texts.data, footer=footer.data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_header(index_path: Path, file: RemoteFile) -> dict[str, Any] | None:
    """Return the header of a remote shard's index, or None if the header cannot be used.

    Only the header is checked. `_read_index` checks the entire file.
    """
    try:
        with index_path.open("rb") as opened:
            header = json.loads(opened.read(_HEADER_SIZE))
        is_of_shard = all(header[key] == value for key, value in _state(file).items())
        return header if is_of_shard and {"pairs", "content", "is_whole"} <= header.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _state(shard: Path | RemoteFile) -> dict[str, object]:
    if isinstance(shard, RemoteFile):
        etag = hashlib.blake2b(shard.etag.encode(), digest_size=16).hexdigest()  # an etag can have any length
        return {"version": _VERSION, "size": shard.size, "etag": etag}
    status = shard.stat()
    return {"version": _VERSION, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def remote_index(file: RemoteFile) -> Path:
    """Return the path of a remote shard's index in the user's cache. The file may not exist."""
    name = hashlib.blake2b(file.url.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return user_cache() / "shards" / f"{name}.index"


def index_remote(file: RemoteFile) -> bool:
    """Create the index of a remote shard in the user's cache, unless a current index is already there.

    The shard is read once.

    Returns:
        Whether the shard was read.

    Raises:
        UserError: If the shard cannot be read or indexed, if it changes while it is read, or if the disk is full.
    """
    index_path = remote_index(file)
    if _read_index(index_path, file) is not None:
        return False
    try:
        index_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=index_path.parent) as folder:
            path = Path(folder) / f"shard{Path(file.name).suffix}"
            with path.open("wb") as copy:
                for start in range(0, file.size, _READ_BYTES):
                    copy.write(file.read(start, min(_READ_BYTES, file.size - start)))
            file.require_same()
            try:
                if path.suffix.lower() == ".parquet":
                    index = scan_table(path)
                else:
                    with path.open("rb") as copy:
                        index = with_content(scan_shard(path), copy)
            except UserError as error:
                raise UserError(str(error).replace(str(path), file.url)) from error
        write_index(index, index_path, file)
    except OSError as error:
        raise DiskError(
            f"{index_path.parent}: the index of {file} cannot be written ({error.strerror}); check the disk"
        ) from error
    return True


def _cache_name(path: Path) -> str:
    whole = str(path.absolute()).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(whole, digest_size=16).hexdigest() + ".index"


def _digest(header: dict[str, object], content: bytes | memoryview) -> str:
    digest = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    digest.update(content)
    return digest.hexdigest()
