"""Run `grr-coca` or `python -m grr_coca` as a process.

Ctrl-C ends the process at any moment with a single line, unless a command handles the signal to save its state first.
If the reader closes the output (`| head`), the process ends without a message. If the output cannot be written because
the disk is full or fails, one line reports the error.
"""

import atexit
import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

_INTERRUPTED = 128 + signal.SIGINT
_UNREAD = 128 + 13
"""Exit code of a program ended by SIGPIPE. Python ignores that signal, so the code is defined here."""
_OBJECTS_OF_IMPORTS = 100_000
"""Number of objects above which Python collects garbage: more than the imports of a command without PyTorch create."""


def run_program() -> NoReturn:
    """Run the command line, and end the process with its exit code.

    The objects of the process are not released one by one, which would take a twentieth of the time of a short command.
    If other threads are running, or the exit code is a message, `SystemExit` is raised instead: Python then waits for
    the threads, or prints the message.
    """
    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, str) or threading.active_count() > 1:
            raise
        atexit._run_exitfuncs()
        with suppress(OSError):  # the reader may have closed the output
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code or 0)


def run() -> NoReturn:
    """Run the command line, and raise `SystemExit` with its exit code.

    After Ctrl-C, and if the output cannot be written, the process is ended here, without `SystemExit`.
    """
    _delay_garbage_collection()
    _open_closed_streams()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console that cannot show "→" shows "?" instead of a traceback
    try:
        from grr_coca.cli import main  # within `try`, because Ctrl-C may come during the import

        code = _run_and_flush(main)
    except KeyboardInterrupt:
        _end_interrupted()
    except RuntimeError as error:
        from grr_coca.common.threads import was_interrupted

        if not was_interrupted(error):
            raise
        _end_interrupted()
    except BrokenPipeError:
        if _output_works():  # the closed pipe is not the standard output
            raise
        os._exit(_UNREAD)  # not `sys.exit`, which would flush once more
    except OSError as error:
        # the error is not about the standard output
        if error.errno not in (errno.ENOSPC, errno.EIO) or _output_works():
            raise
        print(f"error: standard output: cannot be written ({error.strerror})", file=sys.stderr, flush=True)
        os._exit(2)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to do but exit
        # at exit, Python would collect garbage from all of PyTorch's imports, which would take half a second
        gc.freeze()
    sys.exit(code)


def _delay_garbage_collection() -> None:
    """Delay Python's first garbage collection until there are more objects than imports create.

    Imports leave almost no garbage, yet collections took a twentieth of the processor time of a caption. After the
    first collection, the usual thresholds apply again.
    """
    usual = gc.get_threshold()

    def resume(phase: str, info: dict[str, int]) -> None:  # noqa: ARG001
        gc.callbacks.remove(resume)
        gc.freeze()  # later collections skip the objects of imports
        gc.set_threshold(*usual)

    gc.callbacks.append(resume)
    gc.set_threshold(_OBJECTS_OF_IMPORTS)


def _run_and_flush(main: Callable[[], int]) -> str | int | None:
    """Call `main`, write all buffered output, and return the exit code.

    As in `SystemExit`, the code can also be a message to print, or None for success.
    """
    code: str | int | None
    try:
        code = main()
    except SystemExit as end:  # help, or wrong flags
        code = end.code
    sys.stdout.flush()
    return code


def _open_closed_streams() -> None:
    """Discard output to streams that the shell has closed (`>&-`), for which Python has no object."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (to the end)


def _output_works() -> bool:
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _end_interrupted() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):  # the reader may have closed the output
        sys.stdout.flush()
        print("interrupted", file=sys.stderr, flush=True)
    # Not `sys.exit`: if the signal came while generated code ran, Python would raise it once more.
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    run_program()
