"""Finds and reads the image files that a listing names. Paths that lead out of the images' folder are refused."""

import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from grr_coca.data.bad import BadSample, Cause
from grr_coca.data.images import MAX_BYTES, has_image_suffix
from grr_coca.errors import UserError

ADDED_SUFFIXES = ("", ".jpg", ".png", ".jpeg", ".webp")
"""Suffixes that a listing may omit from file names (ROCO lists ids)."""

SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")
"""`https:`, `s3:`, `pipe:` and others. A single letter does not match, because it is a drive of Windows."""


class ImageFiles(NamedTuple):
    """The folder that the paths of a listing are relative to, and the suffix to add to each path."""

    folder: Path
    suffix: str = ""

    def name(self, written: str) -> str:
        """The full path of a file as one text of all that may be written for it. It is neither checked nor opened."""
        # Not by pathlib, which is several times slower: a run may ask for the names of millions of rows.
        return os.path.normpath(os.path.join(self.folder, written + self.suffix))  # noqa: PTH118

    def path(self, written: str, name: str) -> Path:
        """The full path of a file.

        Raises:
            BadSample: the path leads out of the folder, or is not a path of a file.
        """
        if "\0" in written or (SCHEME.match(written) and not _is_file(Path(self.name(written)))):
            message = f"{name}: not a path of a file; nothing is fetched or run, so get the files first (img2dataset)"
            raise BadSample(message, Cause.FORBIDDEN_PATH)
        path = self.name(written)
        # Of `.` and `..`, only whole paths tell what is in them.
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.folder)):  # noqa: PTH100
            message = f"{name}: the path leaves {self.folder}; put the listing in a folder that holds the images"
            raise BadSample(message, Cause.FORBIDDEN_PATH)
        return Path(path)


def locate_images(listing: Path, written: Iterable[str], folders: Sequence[Path]) -> ImageFiles:
    """Find the first folder that holds one of the files that a listing names.

    Args:
        listing: the path of the listing, for messages.
        written: the first paths of the listing. The first file that is found decides.
        folders: the folders to look in, in this order.

    Raises:
        UserError: no file is found; the message names the folders.
    """
    first, refused = None, None
    for text in written:
        first = first or text
        for folder in folders:
            for suffix in ("",) if has_image_suffix(text) else ADDED_SUFFIXES:
                files = ImageFiles(folder, suffix)
                try:
                    if _is_file(files.path(text, f"{listing}: {text}")):
                        return files
                except BadSample as error:
                    refused = refused or error
    if refused is not None:
        raise UserError(str(refused))
    if first is None:
        raise UserError(f"{listing}: no pairs; none of its first rows names the file of an image, as text")
    looked = ", ".join(str(folder) for folder in folders)
    raise UserError(f"{listing}: the images are not there, such as {first}; looked in {looked}")


def read_image_file(path: Path, name: str) -> bytes:
    """The content of a file.

    Raises:
        BadSample: the file does not exist, is not a regular file, is too large, or cannot be read.
    """
    try:
        descriptor = _opened(path, name)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadSample(f"{name}: not a file", Cause.UNREADABLE)
            if status.st_size > MAX_BYTES:
                raise BadSample(f"{name}: {status.st_size:,} bytes are more than the limit", Cause.TOO_LARGE)
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise BadSample(f"{name}: the file {path} is not there", Cause.NO_IMAGE) from error
    except OSError as error:
        raise BadSample(f"{name}: cannot be read ({error.strerror})", Cause.UNREADABLE) from error


def _opened(path: Path, name: str) -> int:
    try:
        # Non-blocking, because opening a named pipe without a writer would wait forever.
        return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a null byte, or half an emoji as JSON may hold it
        raise BadSample(f"{name}: {str(path)!r} is not a path ({error})", Cause.NO_IMAGE) from error


def without_suffix(written: str) -> str:
    """A path without its suffix, if that is the suffix of an image."""
    return written.rpartition(".")[0] if has_image_suffix(written) else written


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as for a name that is too long for the disk
        return False
