"""Flags that take several values: all after one flag, or one after each of several, or both.

Results on standard output: text for people, JSON lines for programs.

Output files that are written completely or not at all, with errors that name the file.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Annotated, TypeVar

import tyro

from grr_coca.errors import UserError, nearest
from grr_coca.files import behind_link, fill_whole


def say(line: str) -> None:
    """Print a line. Bytes of a file name that are not UTF-8 are printed unchanged.

    Raises:
        SystemExit: the reader of the output has closed it, as in `… | head`.
    """
    say_raw(line, "\n")


def say_raw(text: str, end: str) -> None:
    """Print a text and its end, as `say` does a line."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(f"{text}{end}".encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit fails again
        raise SystemExit(128 + signal.SIGPIPE) from error


def to_json(record: Mapping[str, object] | Sequence[Mapping[str, object]]) -> str:
    """A record, or a list of some, as one line of JSON: as text if UTF-8 can encode it, else with escapes."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(record)  # a file name that is not UTF-8; Python's `os.fsencode` restores its bytes
    return line


def called_as() -> list[str]:
    """The words by which this program was called, to tell commands that work here."""
    program = sys.argv[0]
    return [sys.executable, "-m", "grr_coca"] if Path(program).name == "__main__.py" else [program]


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` while writing `path` into a `UserError`."""
    try:
        yield
    except FileExistsError as error:  # of a folder that was to be made
        raise UserError(f"{path}: cannot be written ({error.filename} is a file)") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_output(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name beside it, and rename it when it is completely on the disk.

    Raises:
        UserError: the disk is full or cannot be written to, or there is something else than a file.
    """
    require_replaceable(path)
    with disk_errors(path):
        behind_link(path).parent.mkdir(parents=True, exist_ok=True)
        fill_whole(behind_link(path), write)


def require_writable(path: Path) -> None:
    """Make sure that a file can be written there, before the work for it begins. Its folder is made.

    Raises:
        UserError: there is something else than a file, or the folder of the path cannot be made or written to.
    """
    require_replaceable(path)
    with disk_errors(path):
        folder = behind_link(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def require_replaceable(path: Path) -> None:
    """Make sure that there is a regular file or nothing: a file would take the place of a device.

    Raises:
        UserError: there is something else.
    """
    with disk_errors(path):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give the name of a file")
        is_other = path.exists() and not path.is_file()
    if is_other:
        raise UserError(f"{path}: is a device or a pipe, whose place a file would take; give the name of a file")


def require_other(path: Path, inputs: Iterable[str | Path]) -> None:
    """Make sure that an output takes the place of nothing that is read for it.

    Raises:
        UserError: it is one of the inputs, by whatever name.
    """
    if any(_is_same(path, given) for given in inputs):
        raise UserError(f"{path}: would take the place of what is read; give another name")


def _is_same(path: Path, given: str | Path) -> bool:
    try:
        return path.samefile(given)
    except (OSError, ValueError):  # one is not there, a pattern, or no path at all
        return False


def require_suffix(path: Path, suffixes: tuple[str, ...]) -> str:
    """The suffix of an output file, which says its format.

    Raises:
        UserError: it is not one of `suffixes`.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise UserError(f"{path}: the suffix says the format, and '{suffix}' is none; {nearest(suffix, suffixes)}")
    return suffix


def require_free(folder: Path) -> None:
    """Make sure that a new folder can be written under a name, before the work for it begins.

    Raises:
        UserError: something is there that is no empty folder, or it is the current folder.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        if folder.samefile(Path.cwd()):  # a new folder takes the place of the old one, in which a shell would stay
            raise UserError(f"{folder}: is the current folder, which cannot be replaced; give --out a new folder")
        return
    if folder.exists():
        raise UserError(f"{folder}: is there already; give another --out, or remove it first")


T = TypeVar("T")

Lists = Annotated[tuple[tuple[T, ...], ...], tyro.conf.UseAppendAction]
"""The type of such a flag: the values behind each occurrence. With a plain tuple, the last occurrence would win."""


def joined(lists: tuple[tuple[T, ...], ...]) -> tuple[T, ...]:
    """The values of a flag, however they were given."""
    return tuple(chain.from_iterable(lists))
