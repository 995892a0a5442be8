"""Lock between processes, which uses a separate lock file.

`filelock` provides the system's locks: `flock` or Windows locks.
"""

import errno
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path

from grr_coca.common.files import BINARY

_SHORT_WAIT_SECONDS = 0.2
"""Seconds to wait for a lock that may be released soon."""


class LockHeldError(Exception):
    """Failure to get a lock, because another process or this process holds it.

    `holder` is the number of the process that holds the lock, as text, or `?` if unknown.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(f"held by process {holder}")
        self.holder = holder

    @property
    def is_own_lock(self) -> bool:
        """Whether this process held the lock when the error was raised."""
        return self.holder == str(os.getpid())


class ProcessLock:
    """Lock that one process at a time can hold. The lock file is created if missing, and contains the process number.

    The lock is held until `release` is called, until the object is deleted, or until the process ends for any reason.

    Args:
        path: Path of the lock file, which must not have other content. Its folder must exist.
        removes: Whether to remove the file when the lock is released. A killed process leaves its file behind, which is
            harmless.

    Raises:
        LockHeldError: If the lock is still held after `_SHORT_WAIT_SECONDS`.
        OSError: If the file cannot be created or written to, is a symbolic link, or is on a file system without locks.
    """

    def __init__(self, path: Path, *, removes: bool = False) -> None:
        end = time.monotonic() + _SHORT_WAIT_SECONDS
        while (descriptor := _try_to_lock(path)) is None:
            if time.monotonic() > end:
                raise LockHeldError(_read_holder(path))
            time.sleep(_SHORT_WAIT_SECONDS / 10)
        os.ftruncate(descriptor, 0)
        # A Windows lock on the first byte also prevents others from reading this byte.
        os.lseek(descriptor, 1, os.SEEK_SET)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._release = weakref.finalize(self, _unlock, descriptor, os.getpid(), path if removes else None)
        self._release.atexit = removes  # otherwise, the lock is released when the process ends

    def release(self) -> None:
        """Release the lock. Further calls have no effect."""
        self._release()


def _try_to_lock(path: Path) -> int | None:
    """Return the descriptor of the locked file, or None if the lock is held or its file was just removed."""
    from filelock import lock_descriptor  # lazy import, because it takes a tenth of a second, and --help needs no lock

    if path.is_symlink():  # not every system has `O_NOFOLLOW`
        raise OSError(errno.ELOOP, "a symbolic link", str(path))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | BINARY, 0o666)
    try:
        if lock_descriptor(descriptor, blocking=False) and _is_same_file(path, descriptor):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _is_same_file(path: Path, descriptor: int) -> bool:
    """Return whether the path still leads to the locked file. A former holder may have removed that file."""
    with suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))  # noqa: PTH116
    return False


def _read_holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(1)
            return file.read(32).decode("ascii", "replace").strip() or "?"
    except OSError:
        return "?"


def _unlock(descriptor: int, owner: int, removed: Path | None) -> None:
    """Release a lock, remove its file unless `removed` is None, and close the descriptor.

    Closing is not enough to release the lock, because a forked process may also have the file open. A process that is
    not the owner, which was forked from it, only closes its descriptor.
    """
    from filelock import unlock_descriptor

    is_owner = os.getpid() == owner
    if is_owner:
        is_removed = removed is None or _try_to_remove(removed)
        unlock_descriptor(descriptor)
    os.close(descriptor)
    # Windows does not remove open files, so the file of a new holder is safe
    if is_owner and not is_removed and removed is not None:
        _try_to_remove(removed)


def _try_to_remove(path: Path) -> bool:
    with suppress(OSError):
        path.unlink()
        return True
    return False
