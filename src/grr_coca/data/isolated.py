"""Decode untrusted image files in subprocesses, so that no file can crash, block or exhaust this process.

Image decoders are native code, and some files make them fail. For example, decoding can take minutes because of a
colour profile of 694 bytes, or 760 MB of memory for an 88-byte file, and an SVG file of 190 bytes can abort the
process. Therefore, images are decoded in subprocesses (helpers), which run `isolated_program.py`. A helper cannot open
files after its imports, and is killed when it exceeds a limit.

Helpers are started on demand, by default at most one per core (`HelperLimits.count`), and are reused. They are plain
programs, so they also work in a script without a `__main__` guard, in a notebook, and in the workers of a `DataLoader`.
Their answers are parsed as numbers, JSON and pixels, never as code.

A switch between processes takes a tenth of the time that decoding a small image takes. Therefore, several small files
are sent to a helper in one call.
"""

import atexit
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from grr_coca.common import plugins
from grr_coca.common.errors import UserError
from grr_coca.common.threads import num_threads
from grr_coca.data import isolated_program as program

if TYPE_CHECKING:
    from PIL import Image

    from grr_coca.data.images import Opening

DECODING = "grr_coca.data.decoding"
"""Module with the functions that helpers call on image files."""

_NEW_GROUP = 0x200
"""`CREATE_NEW_PROCESS_GROUP` on Windows."""

_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # By default, glibc returns the memory of each image to the system, which then clears the memory for the next image.
    # For a WebP file, this takes a third of the time.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
}
"""Environment variables of helpers."""

_EXTERNAL_SIGNALS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
"""Signals that an image does not cause. The system sends SIGKILL when it runs out of memory."""

_MAX_FACTS = 2**24
_PIPE_BYTES = 2**20
"""Size of the pipes in bytes, on systems where it can be set. With larger pipes, large images need fewer switches
between processes."""
_SMALL = 2**16
"""Minimum number of bytes to request per read, which is about the size of a small image."""
_START_SECONDS = 120.0
_IDLE_WAIT_SECONDS = 0.1
"""Seconds that a call waits for an idle helper before it starts another one. Starting a helper takes about as long."""
_MAX_TOGETHER = 32
"""Maximum number of `Content` objects per call."""
_MAX_BYTES_TOGETHER = 2**22
"""Number of bytes above which no further `Content` is added to a call."""


@dataclass(frozen=True, kw_only=True)
class HelperLimits:
    """Limits of helpers.

    Attributes:
        cpu_seconds: Maximum processor time per `Content`.
        wall_seconds: Maximum elapsed time per `Content`. It is generous, because a busy machine may delay the helper.
        memory: Maximum address space in bytes of each helper. Windows and macOS have no such limit.
        large_memory: Maximum address space in bytes of a helper for a `Content` that needs more than `memory`. Only one
            such `Content` is processed at a time. None means `memory`.
        count: Maximum number of helpers. None means one helper per core.
    """

    cpu_seconds: float = 60.0
    wall_seconds: float = 240.0
    memory: int = 5 * 2**30
    large_memory: int | None = None
    count: int | None = None

    @property
    def max_memory(self) -> int:
        """The larger memory limit, in bytes."""
        return max(self.memory, self.large_memory or 0)


@dataclass(frozen=True)
class Content:
    """Untrusted bytes for a helper.

    Attributes:
        data: The bytes.
        name: Name of the file in messages.
        needs: Modules that the function imports for these bytes.
        cpu_seconds: Maximum processor time. None means the limit of `HelperLimits`.
        arguments: Arguments of the function for this content.
    """

    data: bytes
    name: str
    needs: tuple[str, ...] = ()
    cpu_seconds: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


Answer = tuple[dict[str, Any], memoryview]
"""Facts about a result, and its bytes. The caller must validate both, because an attacker may control the decoder."""


_Answered = tuple[int, dict[str, Any], int]
"""Result code of `isolated_program`, facts about the result, and the number of its bytes."""


class _HelperExit(Exception):  # noqa: N818 (not always an error)
    """End of a helper during a call. A negative exit code is minus the number of the signal that ended the helper.

    `exceeds_time` specifies whether the processor time was exceeded. `has_external_cause` specifies whether the content
    may not be the cause, for example because the system ran out of memory.
    """

    def __init__(self, code: int) -> None:
        names = {-number: number.name for number in signal.Signals}
        super().__init__(names.get(code, f"exit code {code}"))
        self.exceeds_time = names.get(code) == "SIGPROF"
        self.has_external_cause = code == program.LATE or names.get(code) in _EXTERNAL_SIGNALS


class _Helper:
    """Running process of `isolated_program.py`.

    Raises:
        OSError: If the program cannot be started.
    """

    def __init__(self, modules: frozenset[str], limits: HelperLimits) -> None:
        self.modules, self.limits = modules, limits
        given = {
            "paths": _import_folders(modules),
            "modules": sorted(modules),
            "memory": limits.max_memory,
            "wall_seconds": None if _poll else limits.wall_seconds,
        }
        # The program runs in a separate process group, so that Ctrl-C in a terminal does not reach it. It is isolated
        # (-I), so that it does not import files from the current folder. The pipes are unbuffered, because a forked
        # process would copy the buffers.
        group: Any = {"process_group": 0} if os.name == "posix" else {"creationflags": _NEW_GROUP}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", program.__file__, json.dumps(given)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT},
            **group,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        _enlarge_pipes(self._input.fileno(), self._output.fileno())
        self.is_ready = False

    def call(self, call: bytes, contents: Sequence[Content]) -> tuple[list[_Answered], memoryview]:
        """Call a function on each content. After an error, this helper must not be used again.

        `call` is the pickled call; see `answer_all` in `isolated_program`. The first call waits until the helper is
        ready.

        Returns:
            Code, facts and size of each result, and the concatenated results.

        Raises:
            _HelperExit: If this helper has ended.
            OSError: If this helper did not start.
        """
        if not self.is_ready:
            try:
                self._receive(_START_SECONDS)
            except _HelperExit as error:
                raise OSError(f"the decoding program did not start: {sys.executable}, {error}") from error
            self.is_ready = True
        parts = [content.data for content in contents]
        self._send(b"".join((program.REQUEST.pack(len(call), sum(map(len, parts))), call, *parts)))
        return self._receive(self.limits.wall_seconds * max(1, len(contents)))

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        with suppress(BrokenPipeError):  # the helper has ended, which `_receive` detects
            while rest:
                rest = rest[self._input.write(rest) :]

    def _receive(self, seconds: float) -> tuple[list[_Answered], memoryview]:
        read, size, size_of_facts = bytearray(), program.ANSWER.size, -1
        while len(read) < size:
            if _poll is not None and not _poll(self._output, seconds):
                raise _HelperExit(self._kill())
            part = os.read(self._output.fileno(), max(_SMALL, size - len(read)))
            if not part:  # the pipe is closed, because the helper has ended
                raise _HelperExit(self._process.wait())
            read += part
            if size_of_facts < 0 and len(read) >= size:
                size_of_facts, size_of_results = program.ANSWER.unpack_from(read)
                if size_of_facts > _MAX_FACTS or size_of_results > self.limits.max_memory:
                    raise _HelperExit(self._kill())
                size += size_of_facts + size_of_results
        content = memoryview(read)[program.ANSWER.size :]
        return json.loads(bytes(content[:size_of_facts]) or b"[]"), content[size_of_facts:]

    def _kill(self) -> int:
        self._process.kill()
        self._process.wait()
        return program.LATE

    def end(self) -> None:
        """End the program immediately."""
        self._process.kill()
        self._close()
        self._process.wait()

    def detach(self) -> None:
        """Close the inherited pipes of a helper that belongs to the parent process. Call this after a fork."""
        self._close()
        self._process.returncode = 0  # only the parent may wait for the process

    def _close(self) -> None:
        self._input.close()
        self._output.close()


def _import_folders(modules: frozenset[str]) -> list[str]:
    """Return the folders from which these modules and the modules that every helper needs are imported."""
    specs = (
        find_spec(name) for name in sorted({"grr_coca", "PIL", "numpy", *(name.partition(".")[0] for name in modules)})
    )
    files = (Path(spec.origin) for spec in specs if spec is not None and spec.origin is not None)
    return list(
        dict.fromkeys(str(file.parents[1] if file.name.startswith("__init__.") else file.parent) for file in files)
    )


def _enlarge_pipes(*pipes: int) -> None:
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        for pipe in pipes:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _wait_for_bytes(stream: Any, seconds: float) -> bool:
    """Return whether a pipe has bytes, or has ended, within the given number of seconds."""
    waiting = select.poll()
    waiting.register(stream, select.POLLIN)
    return bool(waiting.poll(1000 * seconds))


_poll = _wait_for_bytes if hasattr(select, "poll") else None
"""Function that waits for a pipe with a time limit. Windows has no such function, so helpers end themselves there."""


class Helpers:
    """Helpers of this process. Idle helpers are reused. Several threads may call functions at the same time.

    Args:
        limits: Limits of each helper.
    """

    def __init__(self, limits: HelperLimits | None = None) -> None:
        self.limits = limits or HelperLimits()
        self._changed = threading.Condition()
        self._one_large = threading.Lock()
        self._all: set[_Helper] = set()
        self._idle: list[_Helper] = []
        self._modules: frozenset[str] = frozenset()

    def use(self, limits: HelperLimits) -> HelperLimits:
        """Use other limits from now on, and return the previous limits. Idle helpers are ended."""
        before, self.limits = self.limits, limits
        self.end()
        return before

    def start(self, *modules: str) -> None:
        """Start a helper that imports the given modules, without waiting until it is ready.

        If a helper already exists, only helpers that are started later import these modules.
        """
        self._modules |= frozenset(modules)
        if not self._all:
            with suppress(OSError):  # the error is reported when a helper is needed
                self._release(self._start_helper())

    def wait(self, module: str) -> None:
        """Wait until a helper that has imported a module is ready. Errors are reported when the helper is needed."""
        with suppress(OSError, _HelperExit):
            self._call(module, "", [], {}, self.limits.memory)

    def call(self, module: str, function: str, content: Content, **arguments: Any) -> Answer:
        """Call `function(data, name, **arguments)` of a module, and return its result: facts and bytes.

        Args:
            module: Module of the function.
            function: Name of the function.
            content: The bytes, and the name of their file.
            **arguments: Other arguments, which are pickled.

        Raises:
            BadSample: If the function rejects the bytes, exceeds a limit (`Cause.TOO_LARGE`) or crashes
                (`Cause.BROKEN_IMAGE`), or if decoding fails for a reason specific to this machine
                (`Cause.UNREADABLE`).
        """
        (answer,) = self.map(module, function, [content], **arguments)
        if isinstance(answer, UserError):
            raise answer
        return answer

    def map(
        self, module: str, function: str, contents: Iterable[Content | UserError], **arguments: Any
    ) -> Iterator[Answer | UserError]:
        """Call a function on several `Content` objects; see `call`. Small ones are sent together, which is faster.

        `contents` is consumed lazily: at most `_MAX_TOGETHER` of its items are in memory. A result or an error is
        yielded for each item, in order. An item that is an error is yielded unchanged.
        """
        together: list[Content | UserError] = []
        num_bytes = 0
        for one in contents:
            together.append(one)
            num_bytes += 0 if isinstance(one, UserError) else len(one.data)
            if len(together) == _MAX_TOGETHER or num_bytes > _MAX_BYTES_TOGETHER:
                yield from self._call_in_order(module, function, together, arguments)
                together, num_bytes = [], 0
        yield from self._call_in_order(module, function, together, arguments)

    def _call_in_order(
        self, module: str, function: str, together: Sequence[Content | UserError], arguments: dict[str, Any]
    ) -> Iterator[Answer | UserError]:
        valid = [one for one in together if isinstance(one, Content)]
        answers = iter(self._answers(module, function, valid, arguments) if valid else ())
        return (next(answers) if isinstance(one, Content) else one for one in together)

    def _answers(
        self, module: str, function: str, contents: Sequence[Content], arguments: dict[str, Any]
    ) -> list[Answer | UserError]:
        if len(contents) > 1:
            with suppress(_HelperExit, OSError):
                return self._call(module, function, contents, arguments, self.limits.memory)
            # One of the contents ended the helper, so the call is repeated for each content separately.
            return [answer for one in contents for answer in self._answers(module, function, [one], arguments)]
        # lazy import of NumPy, so that a command can start a helper before this import
        from grr_coca.data.sources.base import BadSample, Cause

        name, seconds = contents[0].name, self._seconds(contents[0])
        try:
            return self._call(module, function, contents, arguments, self.limits.memory, is_last=False)
        except OSError as error:
            return [BadSample(f"{name}: not decoded ({error}); try again", Cause.UNREADABLE)]
        except _HelperExit as ended:
            if ended.exceeds_time:
                message = f"{name}: decoding takes more than {seconds:g} s of processor time; scale it down first"
                return [BadSample(message, Cause.TOO_LARGE)]
            if ended.has_external_cause:
                message = f"{name}: not decoded: the decoding program timed out, or ended twice ({ended})"
                return [BadSample(f"{message}; try again", Cause.UNREADABLE)]
            return [
                BadSample(
                    f"{name}: crashes its decoder ({ended}); save it again with another program", Cause.BROKEN_IMAGE
                )
            ]

    def _call(
        self,
        module: str,
        function: str,
        contents: Sequence[Content],
        arguments: dict[str, Any],
        memory: int,
        *,
        is_last: bool = True,
    ) -> list[Answer | UserError]:
        """Call a function on contents in one helper.

        If `is_last` is False and the helper ends, the call is repeated in a new helper, because the old helper may have
        timed out, or may have run out of memory after thousands of calls. A content that needs more than `memory` is
        sent again in a separate call with `HelperLimits.max_memory`.

        Raises:
            _HelperExit: If the helper ends.
            OSError: If the helper does not start.
        """
        from grr_coca.data.sources.base import BadSample, Cause

        heads = [(one.name, len(one.data), self._seconds(one), one.arguments) for one in contents]
        call = pickle.dumps((module, function, memory, heads, arguments))
        helper = self._acquire(frozenset({module, *(name for one in contents for name in one.needs)}))
        try:
            answers, results = helper.call(call, contents)
        except BaseException as error:  # the helper has ended, or an interrupt stopped it during a call
            self._end(helper)
            if is_last or not isinstance(error, _HelperExit) or error.exceeds_time:
                raise
            return self._call(module, function, contents, arguments, memory)
        self._release(helper)
        found: list[Answer | UserError] = []
        start = 0
        for one, (code, facts, size) in zip(contents, answers, strict=True):
            if code == program.DONE:
                found.append((facts, results[start : start + size]))
            elif code == program.REJECTED:
                found.append(BadSample(str(facts["message"]), Cause(facts["cause"] or Cause.BROKEN_IMAGE)))
            elif memory < self.limits.max_memory:
                with self._one_large:
                    found += self._call(module, function, [one], arguments, self.limits.max_memory)
            else:
                limit = f"{memory / 2**30:.1f} GiB"
                message = f"{one.name}: decoding takes more memory than {limit}; scale it down first"
                found.append(BadSample(message, Cause.TOO_LARGE))
            start += size
        return found

    def _seconds(self, content: Content) -> float:
        return min(self.limits.cpu_seconds, content.cpu_seconds or self.limits.cpu_seconds)

    def _acquire(self, modules: frozenset[str]) -> _Helper:
        """Take an idle helper that has imported the given modules, or start one if none becomes idle soon.

        Idle helpers without these modules or with earlier limits are ended. If the maximum number of helpers is busy,
        this waits until one of them is released.
        """
        self._modules |= modules
        until = time.monotonic() + _IDLE_WAIT_SECONDS
        with self._changed:
            while True:
                while self._idle:
                    helper = self._idle.pop()
                    if modules <= helper.modules and helper.limits is self.limits:
                        return helper
                    self._end(helper)
                # Helpers are started one at a time, because otherwise every waiting call would start a helper.
                is_full = len(self._all) >= (self.limits.count or num_threads())
                may_start = not is_full and all(helper.is_ready for helper in self._all)
                patience = until - time.monotonic() if self._all else 0
                if may_start and patience <= 0:
                    return self._start_helper()
                self._changed.wait(max(patience, _IDLE_WAIT_SECONDS))

    def _start_helper(self) -> _Helper:
        with self._changed:
            helper = _Helper(self._modules, self.limits)
            self._all.add(helper)
        return helper

    def _release(self, helper: _Helper) -> None:
        with self._changed:
            self._idle.append(helper)
            self._changed.notify()

    def _end(self, helper: _Helper) -> None:
        helper.end()
        with self._changed:
            self._all.discard(helper)
            self._changed.notify()

    def end(self) -> None:
        """End the idle helpers. Busy helpers end when this process ends, because their input is then closed."""
        while self._idle:
            self._end(self._idle.pop())

    def detach(self) -> None:
        """Drop the helpers in a forked process, because they belong to its parent."""
        for helper in self._all:
            helper.detach()
        self.__init__(self.limits)  # type: ignore[misc]  # another thread may have held the lock


helpers = Helpers()
"""Helpers of this process."""

atexit.register(helpers.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=helpers.detach)


# --- Image files

_PNG = b"\x89PNG"
_EIGHT_BITS = (b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")
"""First bytes of files that are decoded without NumPy. PNG files with up to 8 bits are also decoded without NumPy."""
_RASTER_STARTS = (*_EIGHT_BITS, _PNG, b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")
"""First bytes of files that are not drawings. Plug-ins are not queried for these files."""


def call_helper(function: str, data: bytes, name: str, *, module: str = DECODING, **arguments: Any) -> Answer:
    """Call a function on the content of an image file in a helper; see `Helpers.call`.

    Args:
        function: Function of the module, called as `function(data, name, **arguments)`, with `renderer` for a drawing.
        data: Content of the file.
        name: Name of the file in messages.
        module: Module of the function.
        **arguments: Other arguments.

    Raises:
        BadSample: If the file is rejected, exceeds a limit or crashes its decoder, or its format needs a package that
            is not installed.
    """
    return helpers.call(module, function, _content(data, name), **arguments)


def call_helpers(
    function: str, files: Iterable[tuple[bytes | UserError, str]], *, module: str = DECODING, **arguments: Any
) -> Iterator[Answer | UserError]:
    """Call a function on the contents of several image files; see `call_helper` and `Helpers.map`.

    Args:
        function: Function of the module.
        files: Content and name of each file. Files are consumed a few at a time.
        module: Module of the function.
        **arguments: Other arguments.

    Yields:
        The result for each file, or an error, in order. An error in place of a content is yielded unchanged.
    """
    contents = (data if isinstance(data, UserError) else _content(data, name) for data, name in files)
    return helpers.map(module, function, contents, **arguments)


def _content(data: bytes, name: str) -> Content:
    vector = vector_format(data)
    if vector is not None:
        return Content(data, name, (vector.renderer,), vector.cpu_seconds, {"renderer": vector.renderer})
    if data[4:8] == b"ftyp":  # AVIF or HEIC file
        needs: tuple[str, ...] = ("PIL.AvifImagePlugin", "numpy", "pillow_heif")
    else:
        has_eight_bits = data.startswith(_EIGHT_BITS) or (data.startswith(_PNG) and data[24:25] != b"\x10")
        needs = () if has_eight_bits else ("numpy",)
    return Content(data, name, tuple(module for module in needs if find_spec(module) is not None))


def decode_image(data: bytes, name: str, opening: "Opening" = "upright_on_white", **options: Any) -> "Image.Image":
    """Decode the bytes of an image file to an RGB image, in a subprocess.

    Args:
        data: Content of the file.
        name: Name of the file in messages.
        opening: See `decode_in_process`.
        **options: Additional arguments of `decode_in_process`, and `side`, the maximum side length to which the image
            is scaled down.

    Raises:
        BadSample: If the file cannot be decoded, or decoding exceeds a limit.
    """
    return to_image(*call_helper("pixels", data, name, opening=opening, **options))


def to_image(facts: Mapping[str, Any], pixels: memoryview) -> "Image.Image":
    """Return the RGB image that a helper sent, whose size is in the facts.

    Raises:
        ValueError: If the size does not match the number of bytes.
    """
    from PIL import Image  # lazy import, so that a command can start a helper before it imports other modules

    from grr_coca.data.images import FIRST_OF_SEVERAL

    width, height = map(int, facts["size"])
    if len(pixels) != 3 * width * height:
        raise ValueError(f"{len(pixels)} bytes of {width} × {height} pixels")
    image = Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)  # type: ignore[arg-type]
    if facts.get("more"):
        image.info[FIRST_OF_SEVERAL] = True
    return image


def image_header(data: bytes, name: str) -> tuple[tuple[int, int], str]:
    """Return the width, height and format of an image file. No pixels are decoded, but SVG files are drawn.

    Raises:
        BadSample: If the header cannot be read, or the file exceeds a limit.
    """
    facts, _ = call_helper("header", data, name)
    width, height = map(int, facts["size"])
    return (width, height), str(facts["format"])


def check_image(data: bytes, name: str) -> None:
    """Check that an image file can be decoded, in a subprocess.

    Raises:
        BadSample: If the file cannot be decoded, or decoding exceeds a limit.
    """
    call_helper("check", data, name)


class VectorFormat(Protocol):
    """Format of drawings, such as SVG. A package outside the core registers it in `grr_coca.image_formats`.

    Attributes:
        renderer: Name of a module that helpers import. Importing it must succeed even if its requirements are missing.
            Its function `render(data, name, side)` returns a transparent square of `side` pixels, with oblong drawings
            in the middle, or raises `BadSample`.
        cpu_seconds: Maximum processor time for a drawing.
    """

    renderer: str
    cpu_seconds: float

    def recognizes(self, data: bytes) -> bool:
        """Return whether the bytes of a file are in this format. The file name does not matter."""
        ...


def vector_format(data: bytes) -> VectorFormat | None:
    """Return the format of a drawing, or None for pixel images and unknown formats."""
    if data.startswith(_RASTER_STARTS) or data[4:8] == b"ftyp":
        return None
    return next((one for one in plugins.values("grr_coca.image_formats") if one.recognizes(data)), None)
