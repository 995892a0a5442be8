"""Claims: locks of runs for processes that share a folder, perhaps on several machines.

A claim is a hidden file next to the rows, `.NAME.claim-N`. The process that creates the file holds the claim, because
no two processes can create the same file, even on a network file system. The holder renews the file's time every
minute. If the time has not changed for ten minutes, another process takes over the run by creating `.NAME.claim-(N+1)`.
The claim with the highest number counts.

Therefore, if two processes take over the same claim, only one of them gets the next number, even after a delay.
Renaming or removing a file instead could affect the new claim of the first process, which the second process has not
seen. A process that was suspended, and continues after its run was taken over, finds the higher number and abandons the
run. If it has just finished the run, the row that was written first is kept (see `RowFolder.publish`).

Clocks of different machines are not compared: each process that waits for a claim measures the ten minutes itself, and
only while it runs.
"""

import json
import os
import platform
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from grr_coca.common.errors import UserError

RENEWED_EVERY = 60.0
"""Number of seconds between two renewals of a claim."""
FREE_AFTER = 600.0
"""Number of seconds without renewal after which a claim is taken over."""

_FREE = "free"
"""Content of a released claim."""


@dataclass(frozen=True)
class Claim:
    """Claim on a run: the folder of its file, the name of the run, and the number of the claim."""

    folder: Path
    name: str
    number: int

    @property
    def path(self) -> Path:
        """Path of the claim's file."""
        return self.folder / f".{self.name}.claim-{self.number}"

    @property
    def is_held(self) -> bool:
        """Whether this claim is current. A claim is no longer current if another process has taken over or ended the
        run.
        """
        return self.path.exists() and not Claim(self.folder, self.name, self.number + 1).path.exists()

    def register(self) -> None:
        """Register this process for the run.

        Other processes on the same machine may then take over the run as soon as all registered processes have ended.
        """
        with suppress(OSError, ValueError):
            holder = json.loads(self.path.read_bytes())
            self.write({**holder, "processes": sorted({*holder["processes"], os.getpid()})})

    def write(self, holder: object, mode: Literal["xb", "r+b"] = "r+b") -> None:
        """Write the claim's file as JSON.

        Args:
            holder: Content of the file.
            mode: `xb` to create a new file, or `r+b` to overwrite an existing one.

        Raises:
            OSError: If the file cannot be written, already exists (`xb`), or does not exist (`r+b`).
        """
        with self.path.open(mode) as file:
            file.truncate()
            file.write(json.dumps(holder).encode())


class RunLocks:
    """Claims of this process on the runs of one study.

    Args:
        folder: Existing folder that all processes share.
        renewed_every: Number of seconds between two renewals.
        free_after: Number of seconds without renewal after which another process's claim is free.
    """

    def __init__(self, folder: Path, renewed_every: float = RENEWED_EVERY, free_after: float = FREE_AFTER) -> None:
        self.renewed_every = renewed_every
        self._folder = folder
        self._free_after = free_after
        self._held: dict[str, Claim] = {}
        self._renewed = time.monotonic()
        self._seen: dict[str, tuple[object, float]] = {}

    def acquire(self, name: str) -> Claim | None:
        """Claim a run, and return the claim, or None if another process holds it or is faster.

        Raises:
            UserError: If the folder cannot be written to.
        """
        newest = max((int(path.suffix.removeprefix(".claim-")) for path in self._files(name)), default=-1)
        if newest >= 0 and not self._is_free(Claim(self._folder, name, newest)):
            return None
        claim = Claim(self._folder, name, newest + 1)
        try:
            claim.write({"machine": _machine(), "processes": [os.getpid()]}, "xb")
        except FileExistsError:  # another process was faster
            return None
        except OSError as error:
            raise UserError(
                f"{claim.path}: cannot be written ({error.strerror or error}); use a folder that can be written to"
            ) from error
        self._held[name] = claim
        return claim

    def renew(self) -> None:
        """Renew all claims of this process, if the last renewal was at least `renewed_every` seconds ago."""
        if time.monotonic() - self._renewed < self.renewed_every:
            return
        self._renewed = time.monotonic()
        for claim in self._held.values():
            with suppress(OSError):  # the run was taken over and has ended
                os.utime(claim.path)

    def end(self, claim: Claim) -> None:
        """Remove the claim files of a run that has a row, and therefore no longer needs a claim."""
        self._held.pop(claim.name, None)
        for path in self._files(claim.name):
            path.unlink(missing_ok=True)

    def release(self, claim: Claim) -> None:
        """Release an unfinished run for other processes."""
        self._held.pop(claim.name, None)
        with suppress(OSError):
            claim.write(_FREE)

    def release_all(self) -> None:
        """Release all unfinished runs of this process."""
        for claim in list(self._held.values()):
            self.release(claim)

    def _files(self, name: str) -> list[Path]:
        prefix = f".{name}.claim-"
        names = [path.name for path in self._folder.iterdir() if path.name.startswith(prefix)]
        # Other files are copies.
        return [self._folder / name for name in names if name.removeprefix(prefix).isdecimal()]

    def _is_free(self, claim: Claim) -> bool:
        """Return whether a claim was released, all its processes on this machine have ended, or it was not renewed in
        time.
        """
        try:
            content, changed = claim.path.read_bytes(), claim.path.stat().st_mtime_ns
        except FileNotFoundError:  # the run has just ended
            return False
        with suppress(ValueError, KeyError, TypeError):  # a claim that is still being written
            holder = json.loads(content)
            if holder == _FREE or (holder["machine"] == _machine() and not any(map(_runs, holder["processes"]))):
                return True
        state = (claim.number, content, changed)
        before, since = self._seen.get(claim.name, (None, 0.0))
        if state != before:
            self._seen[claim.name] = (state, time.monotonic())
            return False
        return time.monotonic() - since > self._free_after


def _runs(process: int) -> bool:
    try:
        if os.name != "nt":  # on Windows, any signal ends a process
            os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@cache
def _machine() -> str:
    """Return an identifier of this machine that is constant until the machine restarts.

    Containers with separate process numbers count as separate machines.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{start} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (not a file)
    except OSError:  # the system is not Linux
        return f"{platform.node()} {uuid.getnode():x}"
