"""`grr-coca` and `python -m grr_coca`: the command line as a process. Ctrl-C ends it with one line at any moment."""

import os
import signal
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT


def run() -> NoReturn:
    """Run the command line, and end the process with its exit code."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console that cannot show "→" shows "?", and there is no traceback
    try:
        from grr_coca.cli import main  # within `try`, because Ctrl-C may come during the import

        code = main()
    except KeyboardInterrupt:
        _end_interrupted()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done, and only the exit is left
    sys.exit(code)


def _end_interrupted() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):  # the reader of the output may be gone
        sys.stdout.flush()
        print("interrupted", file=sys.stderr, flush=True)
    # Not `sys.exit`: if the signal came while generated code ran, Python would end by it once more.
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    run()
