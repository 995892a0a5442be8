"""`grr-coca` and `python -m grr_coca`: the command line as a process. Ctrl-C ends it with one line at any moment,
and a reader that takes no more of its output (`| head`) without a word. A disk that is too full for the output is told.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + 13
"""The code of a program that SIGPIPE ended, which Python does not let happen."""


def run() -> NoReturn:
    """Run the command line, and end the process with its exit code."""
    _open_what_is_closed()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console that cannot show "→" shows "?", and there is no traceback
    try:
        from grr_coca.cli import main  # within `try`, because Ctrl-C may come during the import

        code = _main_to_the_end(main)
    except KeyboardInterrupt:
        _end_interrupted()
    except BrokenPipeError:
        if _output_is_taken():  # it was another pipe
            raise
        os._exit(UNREAD)  # not `sys.exit`, which would flush once more
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO) or _output_is_taken():  # it was another file
            raise
        print(f"error: standard output: cannot be written ({error.strerror})", file=sys.stderr, flush=True)
        os._exit(2)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done, and only the exit is left
    sys.exit(code)


def _main_to_the_end(main: Callable[[], int]) -> str | int | None:
    """The exit code, when all output has been taken."""
    code: str | int | None
    try:
        code = main()
    except SystemExit as end:  # help and wrong flags
        code = end.code
    sys.stdout.flush()
    return code


def _open_what_is_closed() -> None:
    """Python has no stream where a shell closed one (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (to the end)


def _output_is_taken() -> bool:
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _end_interrupted() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):  # the reader of the output may be gone
        sys.stdout.flush()
        print("interrupted", file=sys.stderr, flush=True)
    # Not `sys.exit`: if the signal came while generated code ran, Python would end by it once more.
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    run()
