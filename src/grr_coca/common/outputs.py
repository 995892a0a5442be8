"""Check output files before the work begins, and write them atomically."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from grr_coca.common.errors import UserError, suggest_name
from grr_coca.common.files import resolve_link, write_atomic


def to_json(record: Mapping[str, object] | Sequence[Mapping[str, object]], indent: int | None = None) -> str:
    """Convert a record or a list of records to JSON. If `indent` is None, the result is a single line.

    Non-ASCII characters are escaped only if the text contains characters that UTF-8 cannot encode.
    """
    text = json.dumps(record, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        # The text contains a file name that is not UTF-8. Python's `os.fsencode` restores the bytes of such a name.
        return json.dumps(record, indent=indent)
    return text


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert an `OSError` that occurs in the context, in which `path` is written, to a `UserError`."""
    try:
        yield
    except FileExistsError as error:  # creating a folder failed
        raise UserError(f"{path}: cannot be written ({error.filename} is a file, not a folder)") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_output(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name in the same folder, and rename it once it is fully on disk.

    The folder is created if it does not exist. If the path is a symbolic link, its target is replaced.

    Args:
        path: Path of the file.
        write: Function that writes the content to an open file.

    Raises:
        UserError: If the disk is full or cannot be written to, or the path is a folder, a device or a pipe.
    """
    _require_replaceable(path)
    with disk_errors(path):
        resolve_link(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(resolve_link(path), write)


def require_writable(path: Path) -> None:
    """Check that a file can be written, and create its folder. Call this before the work begins.

    Raises:
        UserError: If the path is a folder, a device or a pipe, or its folder cannot be created or written to.
    """
    from tempfile import TemporaryFile  # lazy import, because it imports random

    _require_replaceable(path)
    with disk_errors(path):
        folder = resolve_link(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def _require_replaceable(path: Path) -> None:
    """Check that a path does not exist or is a regular file, because an output must not replace a device.

    Raises:
        UserError: If the path exists and is not a regular file, or cannot be checked.
    """
    with disk_errors(path):
        if path.is_dir():
            raise UserError(f"{path}: expected a file, found a folder; pass a file name")
        is_other = path.exists() and not path.is_file()
    if is_other:
        raise UserError(f"{path}: expected a regular file, found a device or a pipe; pass a file name")


def require_not_an_input(path: Path, inputs: Iterable[str | Path]) -> None:
    """Check that an output does not replace an input.

    Raises:
        UserError: If the output is the same file as an input, even if the names differ.
    """
    if any(_is_same(path, given) for given in inputs):
        raise UserError(f"{path}: this input would be overwritten; pass another path")


def _is_same(path: Path, given: str | Path) -> bool:
    try:
        return path.samefile(given)
    except (OSError, ValueError):  # a path does not exist, is a pattern, or is invalid
        return False


def require_suffix(path: Path, suffixes: tuple[str, ...]) -> str:
    """Return the suffix of an output file, which determines its format, in lower case with its dot.

    Raises:
        UserError: If the suffix is not one of `suffixes`, which are in lower case with their dots.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise UserError(f"{path}: unsupported format '{suffix}'; {suggest_name(suffix, suffixes)}")
    return suffix
