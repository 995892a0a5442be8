"""Output of the verbs: lines on standard output, and files that are written completely or not at all."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from grr_coca.common.errors import Interruption, UserError, nearest, on_one_line
from grr_coca.common.files import behind_link, fill_whole

UNREAD = 128 + 13
"""Exit code of a program whose output nobody reads any more: that of SIGPIPE, which Windows does not have."""


def say(text: str, end: str = "\n") -> None:
    """Print a text, then `end`. Bytes of a file name that are not UTF-8 are printed unchanged.

    Raises:
        SystemExit: the reader of the output has closed it, as in `… | head`.
    """
    text += end
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair, which JSON may hold
        content = text.encode("utf-8", "backslashreplace")
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit fails again
        raise SystemExit(UNREAD) from error


def to_json(record: Mapping[str, object] | Sequence[Mapping[str, object]], indent: int | None = None) -> str:
    """A record, or a list of records, as JSON: one line if there is no `indent`. Characters that UTF-8 cannot encode
    are escaped."""
    text = json.dumps(record, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        # A file name that is not UTF-8; Python's `os.fsencode` restores its bytes.
        return json.dumps(record, indent=indent)
    return text


def failure_lines(messages: Iterable[str]) -> list[str]:
    """One line for each failure. If many files need the same package, one line stands for all of them."""
    lines: dict[str, list[str]] = {}
    for message in messages:
        reason = message[message.rfind(": ") + 2 :] if "; pip install" in message else message
        lines.setdefault(reason, []).append(on_one_line(message))
    return [first if not others else f"{first} (and {len(others):,} more)" for first, *others in lines.values()]


def called_as() -> list[str]:
    """The words that start this program, as the user typed them: for commands to show."""
    program = sys.argv[0]
    return [sys.executable, "-m", "grr_coca"] if Path(program).name == "__main__.py" else [program]


def report_stop(stop: KeyboardInterrupt | Interruption) -> int:
    """Say that a signal stopped a demo or a study, and return the exit code."""
    number = stop.number if isinstance(stop, Interruption) else signal.SIGINT
    print(f"{signal.Signals(number).name}: what was trained is saved, and the same command continues", file=sys.stderr)
    return 128 + number


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` while writing `path` into a `UserError`."""
    try:
        yield
    except FileExistsError as error:  # a folder could not be made
        raise UserError(f"{path}: cannot be written ({error.filename} is a file)") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_output(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name beside it, and rename it when it is completely on the disk.

    Raises:
        UserError: the disk is full or cannot be written to, or the path is not that of a file.
    """
    _require_replaceable(path)
    with disk_errors(path):
        behind_link(path).parent.mkdir(parents=True, exist_ok=True)
        fill_whole(behind_link(path), write)


def require_writable(path: Path) -> None:
    """Check that a file can be written, before the work for it begins. Its folder is made.

    Raises:
        UserError: the path is not that of a file, or its folder cannot be made or written to.
    """
    _require_replaceable(path)
    with disk_errors(path):
        folder = behind_link(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def _require_replaceable(path: Path) -> None:
    """Check that a path is a regular file or does not exist. A device must not be replaced by a file.

    Raises:
        UserError: it is not.
    """
    with disk_errors(path):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give the name of a file")
        is_other = path.exists() and not path.is_file()
    if is_other:
        raise UserError(f"{path}: is a device or a pipe, not a file; give the name of a file")


def require_other(path: Path, inputs: Iterable[str | Path]) -> None:
    """Check that an output does not replace an input.

    Raises:
        UserError: it is one of the inputs, under this name or another.
    """
    if any(_is_same(path, given) for given in inputs):
        raise UserError(f"{path}: is an input, and would be overwritten; give another name")


def _is_same(path: Path, given: str | Path) -> bool:
    try:
        return path.samefile(given)
    except (OSError, ValueError):  # one does not exist, is a pattern, or is no path
        return False


def require_suffix(path: Path, suffixes: tuple[str, ...]) -> str:
    """The suffix of an output file, which names its format.

    Raises:
        UserError: it is not one of `suffixes`.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise UserError(f"{path}: '{suffix}' is not the suffix of a format; {nearest(suffix, suffixes)}")
    return suffix


def require_free(folder: Path) -> None:
    """Check that a new folder can be written, before the work for it begins.

    Raises:
        UserError: the path exists and is not an empty folder, or it is the current folder.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        if folder.samefile(Path.cwd()):  # a shell would stay in the old folder
            raise UserError(f"{folder}: is the current folder, which cannot be replaced; give --out a new folder")
        return
    if folder.exists():
        raise UserError(f"{folder}: exists already; give another --out, or remove it first")
