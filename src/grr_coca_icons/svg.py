"""Draws SVG files in helper programs, so that no file can crash or block this process. `svg_program.py` is the program.

resvg draws them, which the extra `[icons]` installs. It is written in Rust, and holds Python's lock while it draws. In
this process, a file of 190 bytes could abort everything, and another could stop all threads for minutes.

Helpers are started when they are needed, one for each core, and kept. They are plain programs, so they also work in a
script without a `__main__` guard, in a notebook, and in the workers of a `DataLoader`.
"""

import atexit
import io
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from grr_coca.common.threads import num_threads
from grr_coca.data.images import VECTOR_SIDE
from grr_coca.data.sources.base import BadSample, Cause
from grr_coca_icons import svg_program as program

_HEAD_BYTES = 4096
"""The first tag of an SVG file must begin within this many bytes, after comments and declarations."""

_FILE_TAGS = re.compile(r"<(?:[^\s<>/:]+:)?(?:image|feImage)(?![^\s<>/])")
"""Elements by which resvg would read other files, with any namespace prefix. An entity cannot hide them: resvg takes
`&#60;` and `&lt;` in an entity as text."""

CPU_SECONDS = 5.0
"""Processor time that a drawing may take. The slowest of 2,000 drawings of Open Clip Art took 0.2 seconds."""

WALL_SECONDS = 60.0
"""Time that a drawing may take. Generous, since a busy machine may give the helper no time."""

_NEW_GROUP = 0x200
"""`CREATE_NEW_PROCESS_GROUP` of Windows."""

_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
"""Signals that say nothing of the drawing. The system sends SIGKILL when it runs out of memory."""


def is_svg(data: bytes) -> bool:
    """True if the bytes of a file are SVG. Its name does not matter."""
    head = data[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!")) and b"<svg" in head)


def draw_svg(data: bytes, name: str, side: int = VECTOR_SIDE) -> Image.Image:
    """Draw an SVG file as a transparent square, with oblong drawings in the middle.

    Nothing else is read: no fonts of the system, and no other image.

    Args:
        data: the file.
        name: its name in messages.
        side: of the square, in pixels. If the drawing itself is smaller than half of it, the square has `VECTOR_SIDE`
            pixels instead, since whoever cuts the drawing out needs more of it.

    Raises:
        BadSample: the file cannot be drawn (`Cause.BROKEN_IMAGE`), resvg is not installed, or this machine did not
            manage to draw it (`Cause.UNREADABLE`), which may be different next time.
    """
    if find_spec("resvg_py") is None:
        message = f"{name}: an SVG file, which needs resvg-py; pip install resvg-py"
        raise BadSample(message, Cause.NOT_INSTALLED)
    try:
        svg = data.decode("utf-8-sig")
        image = render_svg(svg, side)
        if side < VECTOR_SIDE and _is_small(image):
            image = render_svg(svg, VECTOR_SIDE)
    except ValueError as error:
        raise BadSample(f"{name}: an SVG file that cannot be drawn ({error})", Cause.BROKEN_IMAGE) from error
    except OSError as error:
        raise BadSample(f"{name}: an SVG file that was not drawn ({error}); try again", Cause.UNREADABLE) from error
    image.format = "SVG"
    return image


def _is_small(image: Image.Image) -> bool:
    left, top, right, bottom = image.getchannel("A").getbbox() or (0, 0, *image.size)
    return 2 * max(right - left, bottom - top) < image.width


def render_svg(svg: str, side: int) -> Image.Image:
    """Draw an SVG as an RGBA square of `side` pixels, in the middle if it is oblong.

    Safe to call from several threads; each core draws one at a time.

    Raises:
        ValueError: it cannot be drawn, on any machine. It takes more processor time than `CPU_SECONDS`, or
            too much memory, for example.
        OSError: this machine did not manage to draw it: twice, it took more than `WALL_SECONDS`, or
            somebody ended the helper.
    """
    if _FILE_TAGS.search(svg):
        raise ValueError("it contains another image file; give that one")
    drawn = Image.open(io.BytesIO(_helpers.draw(svg.encode(), side)), formats=("PNG",)).convert("RGBA")
    if drawn.size == (side, side):
        return drawn
    square = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square


class _HelperExit(Exception):  # noqa: N818 (what becomes of it depends)
    """A helper ended while it drew. A negative exit code is the number of the signal that ended it."""

    def __init__(self, code: int) -> None:
        names = {-number: number.name for number in signal.Signals}
        super().__init__(names.get(code, f"exit code {code}"))
        self.is_costly = names.get(code) == "SIGPROF"
        self.is_of_machine = code == program.LATE or names.get(code) in _FROM_OUTSIDE


class _Helper:
    """A running `svg_program.py`.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, cpu_seconds: float, wall_seconds: float) -> None:
        resvg = find_spec("resvg_py")
        if resvg is None or resvg.origin is None:
            raise ValueError("resvg-py is not installed")
        # In a process group of its own, where Ctrl-C in a terminal does not reach it. Isolated (-I), so that no file of
        # the current folder is imported. Without buffers, of which a forked process would have a copy.
        group: Any = {"process_group": 0} if os.name == "posix" else {"creationflags": _NEW_GROUP}
        limits = (cpu_seconds, wall_seconds)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", program.__file__, str(Path(resvg.origin).parents[1]), *map(str, limits)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            **group,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        try:
            self._receive()
        except BaseException as error:
            self.end()
            if isinstance(error, _HelperExit):
                raise OSError(f"the program that draws did not start: {sys.executable}, {error}") from error
            raise

    def draw(self, svg: bytes, side: int) -> bytes:
        """The PNG file of an SVG. After any error but a `ValueError`, this helper must not be used again.

        Raises:
            ValueError: resvg refuses it.
            _HelperExit: this helper has ended.
        """
        self._send(program.REQUEST.pack(len(svg), side) + svg)
        code, content = self._receive()
        if code == program.REFUSED:
            raise ValueError(content.decode("utf-8", "replace"))
        return content

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        with suppress(BrokenPipeError):  # it has ended, which receiving finds
            while rest:
                rest = rest[self._input.write(rest) :]

    def _receive(self) -> tuple[int, bytes]:
        code, size = program.ANSWER.unpack(self._read(program.ANSWER.size))
        return code, self._read(size)

    def _read(self, size: int) -> bytes:
        read = bytearray()
        while len(read) < size:
            part = self._output.read(size - len(read))
            if not part:  # the program closes it by ending
                raise _HelperExit(self._process.wait())
            read += part
        return bytes(read)

    def end(self) -> None:
        """End the program, whatever it is doing."""
        self._process.kill()
        self._close()
        self._process.wait()

    def leave(self) -> None:
        """Close the inherited pipes of a helper that belongs to the parent process. To be called after a fork."""
        self._close()
        self._process.returncode = 0  # it is not ours to wait for

    def _close(self) -> None:
        self._input.close()
        self._output.close()


class _Helpers:
    """The helpers of this process: at most one for each core. Those that wait for work are kept."""

    def __init__(self, cpu_seconds: float = CPU_SECONDS, wall_seconds: float = WALL_SECONDS) -> None:
        self._limits = (cpu_seconds, wall_seconds)
        self._places = threading.BoundedSemaphore(num_threads())
        self._idle: list[_Helper] = []  # `append` and `pop` can be called from several threads

    def draw(self, svg: bytes, side: int) -> bytes:
        """The PNG file of an SVG.

        Raises:
            ValueError, OSError: see `render_svg`.
        """
        with self._places:
            try:
                return self._draw(svg, side, is_new=False)
            except _HelperExit as ended:
                if ended.is_costly:
                    raise self._too_costly() from None
            # Once more, in a new helper: the old one may have been late, or out of memory after thousands of drawings.
            try:
                return self._draw(svg, side, is_new=True)
            except _HelperExit as ended:
                if ended.is_costly:
                    raise self._too_costly() from None
                if ended.is_of_machine:
                    raise OSError(f"the program that draws was late, or was ended twice: {ended}") from None
                raise ValueError(f"it makes resvg crash: {ended}") from None

    def _draw(self, svg: bytes, side: int, *, is_new: bool) -> bytes:
        helper = self._idle.pop() if self._idle and not is_new else _Helper(*self._limits)
        try:
            png = helper.draw(svg, side)
        except ValueError:
            self._idle.append(helper)
            raise
        except BaseException:  # it has ended, or an interrupt has left it within a drawing
            helper.end()
            raise
        self._idle.append(helper)
        return png

    def end(self) -> None:
        """End the helpers that wait. The others end when their input does, which is when this process does."""
        while self._idle:
            self._idle.pop().end()

    def leave(self) -> None:
        """Forget the helpers in a forked process: they are its parent's."""
        for helper in self._idle:
            helper.leave()
        self.__init__(*self._limits)  # type: ignore[misc]  # another thread may have held a place

    def _too_costly(self) -> ValueError:
        return ValueError(f"it takes more than {self._limits[0]:g} seconds of a processor")


_helpers = _Helpers()
atexit.register(_helpers.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.leave)


class SvgFormat:
    """SVG for the core: a `grr_coca.data.images.VectorFormat`."""

    def recognizes(self, data: bytes) -> bool:
        """Return whether the bytes of a file are SVG."""
        return is_svg(data)

    def render(self, data: bytes, name: str, side: int) -> Image.Image:
        """Draw an SVG file as a transparent square, see `draw_svg`."""
        return draw_svg(data, name, side)


FORMAT = SvgFormat()
