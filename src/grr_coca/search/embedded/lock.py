"""One writer at a time: a lock that is released when its process ends, however that happens."""

import errno
import fcntl
import os
import weakref
from pathlib import Path

from grr_coca.errors import UserError

LOCK = "writer.lock"


class WriterLock:
    """A lock on a folder, held from its construction until `release`, or until nobody has it any more.

    Raises:
        UserError: another process writes, or another lock of this one; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            told = "a link, which an index does not have" if error.errno == errno.ELOOP else error.strerror
            raise UserError(f"{folder / LOCK}: cannot be written ({told})") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            writer = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "?"
            os.close(self._descriptor)
            if writer == str(os.getpid()):
                told = f"{folder}: this process writes to this index already, and holds it open; close it there first"
                raise UserError(told) from error
            raise UserError(
                f"{folder}: another process ({writer}) writes to this index; wait until it is done, or stop it; "
                "searching goes on meanwhile"
            ) from error
        except OSError as error:
            os.close(self._descriptor)
            raise UserError(
                f"{folder}: the file system gives no locks ({error.strerror or error}), without which two writers "
                "would damage an index; give --out a folder on another one"
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        self._unlock = weakref.finalize(self, _unlock, self._descriptor, os.getpid())
        self._unlock.atexit = False  # the end of the process unlocks, and that of a forked one must not

    def release(self) -> None:
        """Let another process write."""
        self._unlock()


def _unlock(descriptor: int, owner: int) -> None:
    """Give the lock up. To close the file is not enough while a process that was forked meanwhile has it open too."""
    if os.getpid() == owner:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
