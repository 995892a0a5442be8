"""A ledger that is written: row after row, each on the disk before the next."""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType

from grr_coca.errors import UserError
from grr_coca.structure import to_dict
from grr_coca.study.ledger.lines import is_object, told_torn
from grr_coca.study.ledger.row import LedgerRow


class LedgerWriter:
    """Appends rows to one ledger, which no other process writes to meanwhile. A context.

    A row is on disk when `append` returns. What a killed process left of a row is cut off, and told in `notes`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._file = -1

    def __enter__(self) -> "LedgerWriter":
        """Take the ledger.

        Raises:
            UserError: another process has it, or it cannot be written to.
        """
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._end_last_line()
        except BlockingIOError as error:
            os.close(self._file)
            raise UserError(
                f"{self.path}: another process is running this study; wait until it has ended, or give every process "
                "a part of its own with --shard I/N"
            ) from error
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written to ({error.strerror or error})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._file)

    def _end_last_line(self) -> None:
        """A row whose newline alone is lacking gets it, as an editor or a copy may have left it; a torn one goes."""
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        end = content.rfind(b"\n") + 1
        if is_object(content[end:]):
            os.write(self._file, b"\n")
        elif end < len(content):
            os.ftruncate(self._file, end)
            self.notes.append(told_torn(self.path))

    def append(self, row: LedgerRow) -> None:
        """Write a row to the disk.

        Raises:
            UserError: the disk is full or cannot be written to; no part of the row stays behind.
        """
        content = json.dumps(to_dict(row), ensure_ascii=False, separators=(",", ":"))
        # An image's name that is not UTF-8 holds lone surrogates, which become JSON's escapes.
        line = content.encode("utf-8", "backslashreplace") + b"\n"
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError("the disk is full")
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise UserError(
                f"{self.path}: the row of {row.arm}, seed {row.seed}, {row.stage} could not be written "
                f"({error.strerror or error}); make room there: its run is saved, and the same command goes on with it"
            ) from error


def is_locked(path: Path) -> bool:
    """Whether a process is writing to a ledger."""
    with path.open("rb") as file:
        try:  # a shared lock: another one's look does not disturb it, and NFS gives it on a file opened for reading
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
