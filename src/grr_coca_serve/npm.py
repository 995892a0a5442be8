"""Archives of npm packages, which the npm of this machine fetches. No script of a package is run."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grr_coca.common.errors import UserError, escape_control_chars

_SECONDS = 600
"""How long npm may take for a package."""


@dataclass(frozen=True)
class NpmPackage:
    """One version of an npm package. An archive with another SHA-256 is refused."""

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """The file name that `npm pack` gives the package."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def fetch_archive(
    package: str,
    folder: Path,
    by_hand: str,
    *,
    check: Callable[[Path], object] = lambda _: None,
    reason: Callable[[str], str | None] = lambda _: None,
) -> Path:
    """Have npm write the archive of a package into a folder, whole or not at all.

    Args:
        package: NAME or NAME@VERSION.
        folder: made if it is not there.
        by_hand: what to do instead, for messages.
        check: reads the archive before it is kept: one that was cut off would be found broken in each later run.
        reason: makes a message of what npm said; None: it is quoted.

    Raises:
        UserError: npm is not installed, fails or does not answer, or the folder cannot be written to.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"npm is not installed, and it fetches {package}; {by_hand}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".arriving-") as arriving:  # npm writes in pieces
            # npm runs no script of a package that it only packs; the flag says so again.
            command = [npm, "pack", "--ignore-scripts", "--loglevel", "error", package]
            said = subprocess.run(
                command, cwd=arriving, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
            )
            written = sorted(Path(arriving).glob("*.tgz"))
            if said.returncode or len(written) != 1:
                told = f"{said.stderr}\n{said.stdout}"
                first = next((line.strip() for line in told.splitlines() if line.strip()), "it gives no reason")
                raise UserError(reason(told) or f"npm pack {package} failed ({escape_control_chars(first)}); {by_hand}")
            check(written[0])
            with written[0].open("rb") as opened:
                os.fsync(opened.fileno())
            return written[0].replace(folder / written[0].name)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{package}: npm did not answer within {_SECONDS} seconds; {by_hand}") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
