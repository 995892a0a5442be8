"""Locks of runs, for processes that share a folder, perhaps on several machines.

A claim is a hidden file next to the rows, `.NAME.claim-N`. The process that creates it holds it: no two processes can
create the same file, not even on a network file system. The holder renews its time every minute. If it has not changed
for ten minutes, another process takes the run over by creating `.NAME.claim-(N+1)`. The claim with the highest number
counts.

So if two processes take over the same claim, only one gets the next number, even after a delay. A file that is
renamed or removed instead could be the new claim of the first process, which the second has not seen. And a process
that was suspended, and wakes after its run was taken over, finds the higher number and leaves the run. If it has just
ended the run, the row written first is kept (see `RowFolder.publish`).

No clocks are compared: "ten minutes" are measured by the observing process, only while it runs.
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
"""Seconds between two renewals of a claim."""
FREE_AFTER = 600.0
"""Seconds without renewal after which a claim is taken over."""

_FREE = "free"
"""Content of a released claim."""


@dataclass(frozen=True)
class Claim:
    """A claim of this process or of a child process: the path of its file, and its number."""

    folder: Path
    name: str
    number: int

    @property
    def path(self) -> Path:
        """Path of the claim's file."""
        return self.folder / f".{self.name}.claim-{self.number}"

    @property
    def is_held(self) -> bool:
        """Whether this claim is current: False if another process has taken over or ended the run."""
        return self.path.exists() and not Claim(self.folder, self.name, self.number + 1).path.exists()

    def sign(self) -> None:
        """Register this process for the run: on the same machine, the run is free when all registered processes have
        ended.
        """
        with suppress(OSError, ValueError):
            holder = json.loads(self.path.read_bytes())
            self.write({**holder, "processes": sorted({*holder["processes"], os.getpid()})})

    def write(self, holder: object, mode: Literal["xb", "r+b"] = "r+b") -> None:
        """Write the file: `xb` creates a new file, `r+b` overwrites an existing one."""
        with self.path.open(mode) as file:
            file.truncate()
            file.write(json.dumps(holder).encode())


class RunLocks:
    """This process's claims on the runs of one study.

    Args:
        folder: Existing folder that all processes share.
        renewed_every: Seconds between two renewals.
        free_after: Seconds without renewal after which another process's claim is free.
    """

    def __init__(self, folder: Path, renewed_every: float = RENEWED_EVERY, free_after: float = FREE_AFTER) -> None:
        self.renewed_every = renewed_every
        self._folder = folder
        self._free_after = free_after
        self._held: dict[str, Claim] = {}
        self._renewed = time.monotonic()
        self._seen: dict[str, tuple[object, float]] = {}

    def take(self, name: str) -> Claim | None:
        """Claim a run; None if another process has it.

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
            raise UserError(f"{claim.path}: cannot be written ({error.strerror or error})") from error
        self._held[name] = claim
        return claim

    def renew(self) -> None:
        """Renew all claims, if the last renewal was a minute ago."""
        if time.monotonic() - self._renewed < self.renewed_every:
            return
        self._renewed = time.monotonic()
        for claim in self._held.values():
            with suppress(OSError):  # the run was taken over and ended
                os.utime(claim.path)

    def end(self, claim: Claim) -> None:
        """Remove the files of a claim whose run has a row and needs no further claim."""
        self._held.pop(claim.name, None)
        for path in self._files(claim.name):
            path.unlink(missing_ok=True)

    def give_back(self, claim: Claim) -> None:
        """Release an unfinished run for other processes."""
        self._held.pop(claim.name, None)
        with suppress(OSError):
            claim.write(_FREE)

    def give_back_all(self) -> None:
        """Release all unfinished runs of this process."""
        for claim in list(self._held.values()):
            self.give_back(claim)

    def _files(self, name: str) -> list[Path]:
        prefix = f".{name}.claim-"
        names = [path.name for path in self._folder.iterdir() if path.name.startswith(prefix)]
        return [
            self._folder / name for name in names if name.removeprefix(prefix).isdecimal()
        ]  # other files are copies

    def _is_free(self, claim: Claim) -> bool:
        """Return whether a claim was released, all its processes on this machine have ended, or it was not renewed in
        time.
        """
        try:
            content, changed = claim.path.read_bytes(), claim.path.stat().st_mtime_ns
        except FileNotFoundError:  # its run has just ended
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
        if os.name != "nt":  # there, any signal ends a process
            os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@cache
def _machine() -> str:
    """Return an identifier of this machine since its last start.

    Containers with their own process numbers count as separate machines.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{start} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (not a file)
    except OSError:  # not Linux
        return f"{platform.node()} {uuid.getnode():x}"
