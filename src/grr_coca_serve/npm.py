"""Archives of npm packages, which the installed npm downloads. Scripts of the packages are never run."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grr_coca.common.errors import UserError, escape_control_chars

_SECONDS = 600
"""Maximum time, in seconds, for downloading a package."""


@dataclass(frozen=True)
class NpmPackage:
    """Version of an npm package, and the SHA-256 by which the caller checks its archive."""

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """File name that `npm pack` gives the package."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def fetch_archive(
    package: str,
    folder: Path,
    by_hand: str,
    *,
    check: Callable[[Path], object] = lambda _: None,
    reason: Callable[[str], str | None] = lambda _: None,
) -> Path:
    """Make npm write the archive of a package to a folder, atomically, and return the path of the archive.

    Args:
        package: NAME or NAME@VERSION.
        folder: Target folder, which is created if missing.
        by_hand: Description of the manual alternative, for error messages.
        check: Function that raises an error if the archive is invalid. It is called before the archive is stored,
            because every later run would fail with a truncated archive.
        reason: Function that converts the output of npm to an error message. If it returns None, the message quotes the
            first line of the output.

    Raises:
        UserError: If npm is not installed, fails or times out, or the folder cannot be written to. Errors of `check`
            are passed on.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"npm is not installed, so {package} cannot be downloaded; {by_hand}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".staging-") as staging:  # npm writes the file in pieces
            # npm does not run package scripts when it packs a package; the flag ensures this.
            command = [npm, "pack", "--ignore-scripts", "--loglevel", "error", package]
            process = subprocess.run(
                command, cwd=staging, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
            )
            archives = sorted(Path(staging).glob("*.tgz"))
            if process.returncode or len(archives) != 1:
                output = f"{process.stderr}\n{process.stdout}"
                first = next((line.strip() for line in output.splitlines() if line.strip()), "no reason given")
                raise UserError(
                    reason(output) or f"npm pack {package} failed ({escape_control_chars(first)}); {by_hand}"
                )
            check(archives[0])
            with archives[0].open("rb") as opened:
                os.fsync(opened.fileno())
            return archives[0].replace(folder / archives[0].name)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{package}: npm did not answer within {_SECONDS} seconds; {by_hand}") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); {by_hand}") from error
