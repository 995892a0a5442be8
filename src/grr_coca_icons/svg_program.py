"""The program that draws SVG files for `svg.py`, in a process of its own. It reads drawings from its standard input.

A drawing can abort its process, overflow its stack, or take hours, and no check before finds all of these. So there are
limits of memory and of processor time where the system has such limits, and of wall time everywhere. Processor time
decides, so that the result does not depend on how busy the machine is. No file can be opened.

It is run as a file, not imported: it needs the standard library and resvg alone, and starts in a hundredth of a second.
"""

import faulthandler
import os
import signal
import struct
import sys
from io import BufferedIOBase

REQUEST = struct.Struct("<II")
"""The bytes of an SVG, and the side in pixels. The SVG follows."""
ANSWER = struct.Struct("<BI")
"""A code, and the bytes of what follows: `DRAWN` and a PNG file, or `REFUSED` and the reason."""
READY, DRAWN, REFUSED = range(3)

LATE = 1
"""The exit code after too much wall time."""
_MAX_MEMORY = 2**30


def _limit_process() -> None:
    """Limit the memory of this process, and let it open no file and leave no dump. Windows has no such limits."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_AS, _MAX_MEMORY), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 0)):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):  # macOS refuses limits of memory
            continue


def _draw(svg: str, side: int) -> tuple[int, bytes]:
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, dpi=96, skip_system_fonts=True)
        return DRAWN, bytes(png)
    except BaseException as error:  # a panic of Rust is no `Exception`
        return REFUSED, (str(error) or type(error).__name__).encode("utf-8", "replace")[:1000]


def _run(resvg_folder: str, cpu_seconds: float, wall_seconds: float) -> None:
    sys.path.append(resvg_folder)
    import resvg_py  # noqa: F401 (before no file can be opened)

    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # whatever resvg prints
        os.dup2(silent, stream)
    _limit_process()
    if hasattr(signal, "setitimer"):  # the parent may ignore or block the signal, and a program inherits that
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    answers.write(ANSWER.pack(READY, 0))
    answers.flush()
    _answer_all(requests, answers, cpu_seconds, wall_seconds, log=silent)


def _answer_all(
    requests: BufferedIOBase, answers: BufferedIOBase, cpu_seconds: float, wall_seconds: float, log: int
) -> None:
    """Draw until the requests end. `log`: the file that hears why this process ended."""
    has_timer = hasattr(signal, "setitimer")
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        size, side = REQUEST.unpack(head)
        svg = requests.read(size).decode()
        # Both end the process without the help of Python, whose lock resvg holds.
        faulthandler.dump_traceback_later(wall_seconds, exit=True, file=log)
        if has_timer:
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        code, content = _draw(svg, side)
        if has_timer:
            signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        answers.write(ANSWER.pack(code, len(content)) + content)
        answers.flush()


if __name__ == "__main__":
    _run(sys.argv[1], *map(float, sys.argv[2:]))
