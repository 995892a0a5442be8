"""Cache parts of remote files on the local disk. Each part is fetched once, by the first process that needs it."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from grr_coca.common.errors import DiskError
from grr_coca.common.files import LocalFile, user_cache, write_bytes_atomic
from grr_coca.common.remote import RemoteFile

_SUFFIX = ".block"
_FREED_FRACTION = 0.9
"""Fraction of the limit down to which blocks are removed when the limit is exceeded."""

_MAX_TRIES = 3


@dataclass(frozen=True)
class RemoteBlock:
    """Part of a remote file, from byte `start` up to, but excluding, byte `end`."""

    file: RemoteFile
    start: int
    end: int

    def read(self) -> bytes:
        """Fetch the part; see `RemoteFile.read`."""
        return self.file.read(self.start, self.end - self.start)


class BlockCache:
    """Blocks in a folder of the user's cache.

    If the total size of the blocks exceeds the limit, the least recently used blocks are removed.

    Args:
        limit: Approximate maximum total size of all blocks, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.folder = user_cache() / "blocks"
        self._limit = limit
        self._written = limit  # frees space before the first block is written

    def open(self, block: RemoteBlock) -> LocalFile:
        """Open the file of a block, and mark the block as recently used. The caller must close the file.

        The block is fetched if it is not in the cache.

        Raises:
            UserError: If the block cannot be fetched; see `RemoteFile.read`.
            DiskError: If the disk is full or not writable, or the file is removed each time before it can be opened.
        """
        for _ in range(_MAX_TRIES):
            path = self.fetch(block)
            with suppress(FileNotFoundError):  # another process may have removed the file
                file = LocalFile(path)
                with suppress(OSError):
                    os.utime(path)
                return file
        raise DiskError(
            f"{self.folder}: blocks disappear as soon as they are written; do not clear this folder during a run"
        )

    def fetch(self, block: RemoteBlock) -> Path:
        """Fetch a block if it is missing, and return the path of its file.

        If another process is already fetching the block, this waits until the block is there.

        Raises:
            UserError: If the block cannot be fetched; see `RemoteFile.read`.
            DiskError: If the disk is full or not writable.
        """
        path = self._path(block)
        try:
            if not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                with _hold_lock(self.folder / f"{path.name[:2]}.lock"):
                    if not path.exists():
                        content = block.read()
                        self._free_space(len(content))
                        write_bytes_atomic(path, content)
        except OSError as error:
            raise DiskError(
                f"{self.folder}: a block of {block.file} cannot be written ({error.strerror}); check the disk"
            ) from error
        return path

    def drop(self, block: RemoteBlock) -> None:
        """Remove a corrupt block from the cache, if possible."""
        with suppress(OSError):
            self._path(block).unlink()

    def _path(self, block: RemoteBlock) -> Path:
        text = "\0".join([block.file.url, block.file.etag, str(block.start), str(block.end)])
        return self.folder / (hashlib.blake2b(text.encode(), digest_size=16).hexdigest() + _SUFFIX)

    def _free_space(self, size: int) -> None:
        self._written += size
        if (
            self._written < self._limit * (1 - _FREED_FRACTION) / 2
        ):  # do not list thousands of blocks for each new block
            return
        self._written = 0
        used, total = [], size
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError):
                status = path.stat()
                used.append((status.st_mtime_ns, status.st_size, path))
                total += status.st_size
        used.sort(key=lambda one: one[0])
        for _, size_of_one, path in used:
            if total <= self._limit * _FREED_FRACTION:
                break
            with suppress(OSError):  # on Windows, open files cannot be removed
                path.unlink()
                total -= size_of_one


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    from filelock import FileLock  # lazy import, because it takes a tenth of a second

    lock = FileLock(path)
    with suppress(OSError, NotImplementedError):  # some drives have no locks, so a block may be fetched twice
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
