"""`grr-coca` and `python -m grr_coca`: the command line as a process, which Ctrl-C ends with one line at any moment."""

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
        sys.stdout.reconfigure(errors="replace")  # a console without an arrow gets a question mark, and no traceback
    try:
        from grr_coca.cli import main  # here: Ctrl-C may come while it is imported

        code = main()
    except KeyboardInterrupt:
        _end_interrupted()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done; what is left is to end
    sys.exit(code)


def _end_interrupted() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):  # whoever reads may be gone
        sys.stdout.flush()
        print("interrupted", file=sys.stderr, flush=True)
    # At once: Python would end by the signal once more if it came while generated code ran.
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    run()
