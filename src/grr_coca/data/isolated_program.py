"""Program that the helpers of `isolated.py` run. It calls functions on untrusted bytes in a separate process.

An image can abort its decoder, overflow the decoder's stack, or take hours, and no check detects all of these cases
beforehand. Therefore, memory and processor time are limited where the system supports it. Processor time is limited
rather than elapsed time, so that the result does not depend on how busy the machine is. After its imports, the program
cannot open files.

The program is run as a file in isolated mode (`python -I -S`), not imported as a module. The parent passes the folders
from which the program imports modules.
"""

import faulthandler
import gc
import importlib
import json
import os
import pickle
import signal
import struct
import sys
from io import BufferedIOBase
from typing import Any

REQUEST = struct.Struct("<II")
"""Size of a call, which the parent pickles, and the total size of the contents that follow."""
ANSWER = struct.Struct("<II")
"""Size of the answers as JSON, and total size of the results that follow. The answer for each content consists of a
code, facts about the result, and the size of the result."""
DONE, REJECTED, OUT_OF_MEMORY = range(3)

LATE = 1
"""Exit code when the limit of elapsed time is exceeded, on systems where the parent cannot wait with a time limit."""
_LARGE = 32 * 2**20
"""Minimum size, in bytes, of a request or an answer after which free memory is returned to the system."""


def _limit(kind: str, soft: int, hard: int) -> None:
    """Limit a resource of this process, such as `RLIMIT_AS`, if the system supports it.

    Windows has no limits, and macOS has no memory limit.
    """
    try:
        import resource

        resource.setrlimit(getattr(resource, kind), (soft, hard))
    except (ImportError, AttributeError, ValueError, OSError):
        return


def _find_malloc_trim() -> Any:
    """Return the C library's function that returns free memory to the system, or None if the library has none."""
    try:
        import ctypes

        return ctypes.CDLL(None).malloc_trim
    except (ImportError, OSError, AttributeError, TypeError):  # only glibc has this function
        return None


def _run(paths: list[str], modules: list[str], memory: int, wall_seconds: float | None) -> None:
    sys.path.extend(paths)
    gc.disable()  # imports leave no garbage, and their objects are permanent
    for name in modules:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    trim = _find_malloc_trim()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # discard the output of decoders
        os.dup2(silent, stream)
    _limit("RLIMIT_AS", memory, memory)
    for kind in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NOFILE"):
        _limit(kind, 0, 0)
    if hasattr(signal, "SIGPROF"):  # a program inherits ignored and blocked signals from its parent
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    answers.write(ANSWER.pack(0, 0))
    answers.flush()
    answer_all(requests, answers, memory, wall_seconds, log=silent, trim=trim)


def answer_all(
    requests: BufferedIOBase,
    answers: BufferedIOBase,
    memory: int,
    wall_seconds: float | None,
    log: int,
    trim: Any = None,
) -> None:
    """Answer requests until their stream ends.

    Args:
        requests: Stream of requests.
        answers: Stream for the answers.
        memory: Maximum address space in bytes that a request can allow.
        wall_seconds: Maximum elapsed time for each content. If None, the parent kills this process when the time limit
            is exceeded.
        log: Descriptor of the file to which the traceback is written when the time limit is exceeded.
        trim: Function that returns free memory to the system, or None.
    """
    limit = memory
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        size_of_call, size = REQUEST.unpack(head)
        module, function, imports, contents, arguments = pickle.loads(requests.read(size_of_call))  # sent by the parent
        if imports != limit:
            _limit("RLIMIT_AS", limit := imports, memory)
        answered, results = [], []
        for name, length, seconds, own in contents:
            data = requests.read(length)
            _start_timer(seconds, wall_seconds, log)
            has_most = limit == memory
            code, facts, result = _call_function(module, function, data, name, {**arguments, **own}, has_most)
            _stop_timer(wall_seconds)
            answered.append((code, facts, len(result)))
            results.append(result)
            del data
        answer_json, size_of_results = json.dumps(answered).encode(), sum(map(len, results))
        answers.write(ANSWER.pack(len(answer_json), size_of_results) + answer_json)
        for result in results:
            answers.write(result)
        answers.flush()
        if trim is not None and max(size, size_of_results) >= _LARGE:
            del result, results
            trim(0)


def _start_timer(seconds: float, wall_seconds: float | None, log: int) -> None:
    """Limit the time of the next call. The process is ended without running Python code, because a decoder may hold
    Python's interpreter lock.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    if wall_seconds is not None:  # called only if needed, because it starts a thread
        faulthandler.dump_traceback_later(wall_seconds, exit=True, file=log)


def _stop_timer(wall_seconds: float | None) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, 0)
    if wall_seconds is not None:
        faulthandler.cancel_dump_traceback_later()


def _call_function(
    module: str, function: str, data: bytes, name: str, arguments: dict[str, Any], has_most: bool
) -> tuple[int, dict[str, Any], bytes]:
    try:
        facts, result = getattr(sys.modules[module], function)(data, name, **arguments)
        return DONE, facts, result
    except MemoryError:
        return OUT_OF_MEMORY, {}, b""
    except BaseException as error:  # a Rust panic is not an `Exception`
        if getattr(error, "may_lack_memory", False) and not has_most:
            return OUT_OF_MEMORY, {}, b""
        cause = getattr(error, "cause", None)
        message = (
            str(error)
            if cause
            else f"{name}: its decoder fails ({type(error).__name__}: {error}); save it with another program"
        )
        return REJECTED, {"message": message[:2000], "cause": cause}, b""


if __name__ == "__main__":
    _run(**json.loads(sys.argv[1]))
