"""Claims: which process works on a run, when several processes, perhaps on several machines, share a folder.

A claim is a hidden file beside the rows, `.NAME.claim-N`. Who creates it, holds it: no two processes can create the
same file, on a network file system neither. The holder renews its time every minute. When it has not changed for ten,
another process takes the run over by creating `.NAME.claim-(N+1)`. The claim with the highest number counts.

So of two that take over the same claim, one gets the next number, however long the other hesitated. A file that is
renamed or removed instead could be the new claim of the first, since the second has not seen it. And a process that was
suspended, and wakes when its run was taken over, sees the higher number and leaves the run. If it has just ended
the run, the row that is written first stays (see `RowFolder.publish`).

No clocks are compared: "ten minutes" are those of the process that looks, and count only while it runs.
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
"""Seconds between two signs of life of a claim."""
FREE_AFTER = 600.0
"""Seconds without a sign of life, after which a claim is taken over."""

_FREE = "free"
"""Content of a claim that was given back."""


@dataclass(frozen=True)
class Claim:
    """A claim of this process, or of one that it has started. The path of its file, and its number."""

    folder: Path
    name: str
    number: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f".{self.name}.claim-{self.number}"

    @property
    def is_held(self) -> bool:
        """False if another process has taken the run over, or has ended it."""
        return self.path.exists() and not Claim(self.folder, self.name, self.number + 1).path.exists()

    def sign(self) -> None:
        """Add this process to those that work on the run: on the same machine, it is free when all of them are gone."""
        with suppress(OSError, ValueError):
            holder = json.loads(self.path.read_bytes())
            self.write({**holder, "processes": sorted({*holder["processes"], os.getpid()})})

    def write(self, holder: object, mode: Literal["xb", "r+b"] = "r+b") -> None:
        """Write the file: `xb` makes a new one, `r+b` writes over one that is still there."""
        with self.path.open(mode) as file:
            file.truncate()
            file.write(json.dumps(holder).encode())


class Claims:
    """The claims of this process on the runs of one study.

    Args:
        folder: An existing folder, which all processes share.
        renewed_every: Seconds between two signs of life.
        free_after: Seconds without one, after which a claim of another process is free.
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
        """Give a sign of life for all claims, if the last one is a minute ago."""
        if time.monotonic() - self._renewed < self.renewed_every:
            return
        self._renewed = time.monotonic()
        for claim in self._held.values():
            with suppress(OSError):  # the run was taken over and ended
                os.utime(claim.path)

    def end(self, claim: Claim) -> None:
        """Remove the files of a claim whose run needs no other: its row is written."""
        self._held.pop(claim.name, None)
        for path in self._files(claim.name):
            path.unlink(missing_ok=True)

    def give_back(self, claim: Claim) -> None:
        """Let others take a run, which is not finished."""
        self._held.pop(claim.name, None)
        with suppress(OSError):
            claim.write(_FREE)

    def give_back_all(self) -> None:
        """Let others take all runs that this process has begun and not finished."""
        for claim in list(self._held.values()):
            self.give_back(claim)

    def _files(self, name: str) -> list[Path]:
        prefix = f".{name}.claim-"
        names = [path.name for path in self._folder.iterdir() if path.name.startswith(prefix)]
        return [self._folder / name for name in names if name.removeprefix(prefix).isdecimal()]  # others are copies

    def _is_free(self, claim: Claim) -> bool:
        """Return whether a claim was given back, all its processes on this machine are gone, or it shows no sign of
        life.
        """
        try:
            content, changed = claim.path.read_bytes(), claim.path.stat().st_mtime_ns
        except FileNotFoundError:  # its run has just ended
            return False
        with suppress(ValueError, KeyError, TypeError):  # half a claim, which is being written
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
    """Identify this machine since its last start. Containers with their own process numbers are separate machines."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{start} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (not a file)
    except OSError:  # not Linux
        return f"{platform.node()} {uuid.getnode():x}"
