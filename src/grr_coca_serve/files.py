"""The picture files of an index: whether they are there, their bytes, and thumbnails.

An index may name files on a drive that hangs, or that have become something else. They are read in threads of their
own, and nobody waits long for them.
"""

import asyncio
import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.common.files import is_within
from grr_coca.data.images import encoded
from grr_coca.data.isolated import decode_image
from grr_coca_serve.daemon_threads import DaemonThreads
from grr_coca_serve.lru_cache import LruCache
from grr_coca_serve.refusal import Refusal
from grr_coca_serve.svg_cleaning import clean_svg

if TYPE_CHECKING:
    from grr_coca_search.entry import Entry

Result = TypeVar("Result")

_THREADS = 4
_SECONDS = 10.0
"""How long a request waits for a file. It gets a placeholder then."""
_SECONDS_UNTIL_LATE = 30.0
_SECONDS_TO_LOOK = 2.0
"""How long a search waits to learn which files are there."""
_SECONDS_WITHOUT_LOOK = 30.0
"""After a look that took too long, all files count as there for this time."""
_MAX_THUMBNAIL_BYTES = 64 * 2**20
_MAX_DRAWING_BYTES = 8192
"""Larger SVG files are not part of an answer: it would be late for one of them."""
_MAX_DRAWINGS_BYTES = 16 * 2**20
_LARGE_BYTES = 16 * 2**20
"""Larger files are read for thumbnails one at a time: several would fill the memory."""


class PictureFiles:
    """The files of the pictures of one index.

    Args:
        folders: only pictures in these are shown; None: all.
    """

    def __init__(self, folders: Sequence[Path] | None) -> None:
        self._folders = folders
        self._one_large = threading.Lock()
        self._workers = DaemonThreads(_THREADS, "files", _SECONDS_UNTIL_LATE)
        self._thumbnails = LruCache[tuple, bytes](_MAX_THUMBNAIL_BYTES)
        self._drawings = LruCache[tuple, str](_MAX_DRAWINGS_BYTES)
        self._being_made: dict[tuple, Future[bytes | None]] = {}
        self._blind_until = 0.0

    def close(self) -> None:
        """End the threads, without waiting for files that do not answer."""
        self._workers.close()

    @property
    def num_late(self) -> int:
        """The number of files that have not answered for half a minute."""
        return self._workers.num_late

    async def read(self, entry: "Entry") -> bytes:
        """The bytes of a picture.

        Raises:
            UserError: its file cannot be read.
            Refusal: the server does not show it, or the file does not answer.
        """
        content = await self._in_time(self._workers.put(self._read, entry))
        if content is None:
            raise Refusal(504, f"the file of this picture has not answered for {_SECONDS:g} s; its drive may hang")
        return content

    def read_now(self, entry: "Entry") -> bytes:
        """The bytes of a picture, as by `read`. Called from any thread but the loop's.

        Raises:
            UserError: its file cannot be read, is not shown, or does not answer.
        """
        reading = self._workers.put(self._read, entry)
        try:
            return reading.result(_SECONDS)
        except Refusal as refusal:
            raise UserError(refusal.message) from refusal
        except TimeoutError as error:
            reading.cancel()
            raise UserError(f"the file of this picture has not answered for {_SECONDS:g} s") from error

    def decode(self, data: bytes, name: str, side: int) -> Image.Image:
        """A picture of which no side is longer than `side`. Called from any thread but the loop's.

        Raises:
            UserError: it is no picture, or too large.
        """
        return decode_image(data, name, to_srgb=True, at_least=(2 * side, 1), side=side)

    async def thumbnail(self, entry: "Entry", side: int) -> bytes | None:
        """A picture as WebP, its longest side at most `side`; None if its file is gone, broken, or does not answer."""
        key = (entry.name, entry.stamp, side)
        known = self._thumbnails.get(key)
        if known is None:
            making = self._being_made.get(key)
            if making is None:  # otherwise a page that is loaded again would wait for the same file in more threads
                making = self._being_made[key] = self._workers.put(self._thumbnail, entry, side)
            try:
                known = await self._in_time(making)
            finally:
                if making.done():
                    self._being_made.pop(key, None)
            if known is not None:
                self._thumbnails.put(key, known, len(known))
        return known

    def are_there(self, entries: "Iterable[Entry]") -> dict[str, bool]:
        """Whether the files of pictures exist and may be shown, by `Entry.file`. Called from any thread but the loop's.

        What does not answer in time counts as there.
        """
        files = list({entry.file for entry in entries})
        if time.monotonic() < self._blind_until:
            return dict.fromkeys(files, True)
        looking = self._workers.put(lambda: {file: self._is_there(file) for file in files})
        try:
            return looking.result(_SECONDS_TO_LOOK)
        except TimeoutError:
            looking.cancel()
            self._blind_until = time.monotonic() + _SECONDS_WITHOUT_LOOK
            return dict.fromkeys(files, True)

    def drawings(self, entries: "Iterable[Entry]") -> dict[str, str]:
        """SVG sources of small SVG files, cleaned, by `Entry.name`. Called from any thread but the loop's.

        Those that cannot be read or cleaned, or do not answer in time, are left out.
        """
        found: dict[str, str] = {}
        reading = self._workers.put(self._read_drawings, [entry for entry in entries if entry.is_vector], found)
        try:
            reading.result(_SECONDS_TO_LOOK)
        except TimeoutError:
            reading.cancel()
        return dict(found)

    async def _in_time(self, future: "Future[Result]") -> Result | None:
        """The result; None if it takes too long. The work goes on, as others may wait for it."""
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), _SECONDS)
        except TimeoutError:
            return None

    # --- In the threads

    def _is_there(self, file: str) -> bool:
        try:
            return bool(file) and os.path.exists(file) and self._is_shown(file)  # noqa: PTH110 (see `Entry.is_there`)
        except ValueError:  # a null byte in the name
            return False

    def _is_shown(self, file: str) -> bool:
        return self._folders is None or is_within(file, self._folders)

    def _read(self, entry: "Entry") -> bytes:
        if not self._is_shown(entry.file):
            raise Refusal(403, "this server does not show pictures outside of the folders given by --pictures")
        return entry.span.read()

    def _read_drawings(self, entries: "Sequence[Entry]", found: dict[str, str]) -> None:
        for entry in entries:
            key = (entry.name, entry.stamp)
            known = self._drawings.get(key)
            if known is None:
                with suppress(UserError, Refusal, OSError, ValueError):  # a null byte in the name
                    size = entry.span.size if entry.offset is not None else os.stat(entry.file).st_size  # noqa: PTH116
                    if size is not None and size <= _MAX_DRAWING_BYTES:
                        known = (clean_svg(self._read(entry)) or b"").decode()
                        self._drawings.put(key, known, len(known))
            if known:
                found[entry.name] = known

    def _thumbnail(self, entry: "Entry", side: int) -> bytes | None:
        try:
            size = entry.span.size if entry.offset is not None else os.stat(entry.file).st_size  # noqa: PTH116
            is_large = (size or 0) > _LARGE_BYTES
            if is_large and not self._one_large.acquire(timeout=_SECONDS):
                return None
            try:
                image = self.decode(self._read(entry), entry.name, side)
            finally:
                if is_large:
                    self._one_large.release()
        except (UserError, Refusal, OSError, ValueError):  # a null byte in the name
            return None
        return encoded(image, "WEBP", quality=80, method=2)
