"""Print the output of commands: results on standard output, errors on standard error."""

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from grr_coca.common.errors import Interruption, UserError, count_of, escape_control_chars
from grr_coca.model.checkpoint_files import FOR_PHOTOGRAPHS

if TYPE_CHECKING:
    from grr_coca.infer.outputs.caption_files import CaptionOutput

BROKEN_PIPE_EXIT_CODE = 128 + 13
"""Exit code of a program whose reader has closed its output. It is the code of SIGPIPE, which Windows does not have."""


def print_line(text: str, end: str = "\n") -> None:
    """Print a text, then `end`. Bytes of a file name that are not UTF-8 are printed unchanged.

    Raises:
        SystemExit: If the reader has closed the output, as in `… | head`.
    """
    text += end
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can contain
        content = text.encode("utf-8", "backslashreplace")
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit would fail again
        raise SystemExit(BROKEN_PIPE_EXIT_CODE) from error


def failure_lines(messages: Iterable[str]) -> list[str]:
    """Return one printable line for each failure message.

    If several files need the same missing package, a single line covers all of them.
    """
    lines: dict[str, list[str]] = {}
    for message in messages:
        reason = message[message.rfind(": ") + 2 :] if " -m pip install " in message else message
        lines.setdefault(reason, []).append(escape_control_chars(message))
    return [first if not others else f"{first} (and {len(others):,} more)" for first, *others in lines.values()]


_MAX_LINES = 20


def print_first(lines: Sequence[str]) -> None:
    """Print the first `_MAX_LINES` lines on standard error, indented, and the number of remaining lines, if any."""
    for line in lines[:_MAX_LINES]:
        print(f"  {line}", file=sys.stderr)
    if len(lines) > _MAX_LINES:
        print(f"  … and {len(lines) - _MAX_LINES:,} more", file=sys.stderr)


@contextmanager
def close_and_report(output: "CaptionOutput") -> "Iterator[CaptionOutput]":
    """Close an output at the end of the context, and list on standard error the files that could not be written."""
    try:
        with output:
            yield output
    finally:
        if output.unwritten:
            count = len(output.unwritten)
            print(f"{count} {output.kind}{'' if count == 1 else 's'} cannot be written:", file=sys.stderr)
            for line in failure_lines(output.unwritten):
                print(f"  {line}", file=sys.stderr)


def report_unfamiliar(unfamiliar: Sequence[bool | None]) -> None:
    """Report the number of images that got no output because they are unlike the training images.

    Output for such an image would look like a deliberate description. None means that familiarity is unknown.
    """
    count = sum(map(bool, unfamiliar))
    if count:
        print(
            f"wrote nothing for {count:,} of {count_of(len(unfamiliar), 'image')}, because this model was trained on "
            f"different images; for photographs, add -c {FOR_PHOTOGRAPHS}",
            file=sys.stderr,
        )


def program_args() -> list[str]:
    """Return the words with which the user started this program, for use in messages."""
    program = sys.argv[0]
    return [sys.executable, "-m", "grr_coca"] if Path(program).name == "__main__.py" else [program]


def report_stop(stop: KeyboardInterrupt | Interruption) -> int:
    """Report that a signal stopped a demo or a study, and return the exit code."""
    number = stop.number if isinstance(stop, Interruption) else signal.SIGINT
    print(f"{signal.Signals(number).name}: progress is saved; run the same command to continue", file=sys.stderr)
    return 128 + number


def require_new_folder(folder: Path) -> None:
    """Check that a folder does not exist or is empty, before the work that writes it begins.

    Raises:
        UserError: If the path exists and is not an empty folder, or it is the current folder.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        if folder.samefile(Path.cwd()):  # a shell in that folder would stay in the old one
            raise UserError(f"{folder}: the current folder cannot be replaced; pass a new folder to --out")
        return
    if folder.exists():
        raise UserError(f"{folder}: already exists; pass another --out, or remove it first")
