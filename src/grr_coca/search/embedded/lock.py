"""One writer at a time: a lock that is released when its process ends, however that happens."""

import fcntl
import os
from pathlib import Path

from grr_coca.errors import UserError

LOCK = "writer.lock"


class WriterLock:
    """A lock on a folder, held from its construction until `release`.

    Raises:
        UserError: another process writes; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            writer = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "?"
            os.close(self._descriptor)
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

    def release(self) -> None:
        """Let another process write."""
        os.close(self._descriptor)
