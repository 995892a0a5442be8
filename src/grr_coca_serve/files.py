"""Access to the image files of an index: whether they exist, their bytes, and their thumbnails.

An index may name files on a stalled drive, or files that have been replaced. Files are read in separate threads, so
that no request waits long for them.
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
from grr_coca.data.images import encode_image
from grr_coca.data.isolated import decode_image
from grr_coca_serve.daemon_threads import DaemonThreads
from grr_coca_serve.lru_cache import LruCache
from grr_coca_serve.request_error import RequestError
from grr_coca_serve.svg_cleaning import clean_svg

if TYPE_CHECKING:
    from grr_coca_search.entry import Entry

Result = TypeVar("Result")

_THREADS = 4
_SECONDS = 10.0
"""Number of seconds that a request waits for a file before it gets a placeholder."""
_SECONDS_UNTIL_LATE = 30.0
"""Number of seconds after which a file that is being read counts as stalled."""
_SECONDS_TO_CHECK = 2.0
"""Number of seconds that a search waits while the existence of files is checked."""
_SECONDS_WITHOUT_CHECK = 30.0
"""Number of seconds during which all files count as existing, after such a check has taken too long."""
_MAX_THUMBNAIL_BYTES = 64 * 2**20
_MAX_DRAWING_BYTES = 8192
"""Maximum size of an SVG file that an answer includes. Larger files would delay the answer."""
_MAX_DRAWINGS_BYTES = 16 * 2**20
_LARGE_BYTES = 16 * 2**20
"""Size above which files are read one at a time for thumbnails, because several such files would exhaust the memory."""


class PictureFiles:
    """Image files of one index.

    Args:
        folders: Folders whose images may be shown. If this is None, all images may be shown.
    """

    def __init__(self, folders: Sequence[Path] | None) -> None:
        self._folders = folders
        self._one_large = threading.Lock()
        self._workers = DaemonThreads(_THREADS, "files", _SECONDS_UNTIL_LATE)
        self._thumbnails = LruCache[tuple, bytes](_MAX_THUMBNAIL_BYTES)
        self._drawings = LruCache[tuple, str](_MAX_DRAWINGS_BYTES)
        self._in_progress: dict[tuple, Future[bytes | None]] = {}
        self._skip_checks_until = 0.0

    def close(self) -> None:
        """End the threads, without waiting for stalled files."""
        self._workers.close()

    @property
    def num_stalled(self) -> int:
        """Number of files that have been read for more than half a minute, usually because their drive is stalled."""
        return self._workers.num_stalled

    async def read(self, entry: "Entry") -> bytes:
        """Return the bytes of an image.

        Raises:
            UserError: If the file of the image cannot be read.
            RequestError: If the server may not show the image, or the file is stalled.
        """
        content = await self._wait_briefly(self._workers.put(self._read, entry))
        if content is None:
            raise RequestError(
                504,
                f"the file of this image could not be read within {_SECONDS:g} s, because its drive may be stalled; "
                "try again later",
            )
        return content

    def read_now(self, entry: "Entry") -> bytes:
        """Return the bytes of an image, as `read` does. Do not call this from the event-loop thread.

        Raises:
            UserError: If the file cannot be read, may not be shown, or is stalled.
        """
        reading = self._workers.put(self._read, entry)
        try:
            return reading.result(_SECONDS)
        except RequestError as error:
            raise UserError(error.message) from error
        except TimeoutError as error:
            reading.cancel()
            raise UserError(
                f"the file of this image could not be read within {_SECONDS:g} s, because its drive may be stalled; "
                "try again later"
            ) from error

    def decode(self, data: bytes, name: str, side: int) -> Image.Image:
        """Decode an image with sides of at most `side` pixels. Do not call this from the event-loop thread.

        Raises:
            UserError: If the data are not an image, or the image is too large.
        """
        return decode_image(data, name, to_srgb=True, at_least=(2 * side, 1), side=side)

    async def thumbnail(self, entry: "Entry", side: int) -> bytes | None:
        """Return an image as WebP, with sides of at most `side` pixels.

        Return None if the file of the image is missing, corrupt or stalled, or may not be shown.
        """
        key = (entry.name, entry.stamp, side)
        known = self._thumbnails.get(key)
        if known is None:
            thumbnail = self._in_progress.get(key)
            if thumbnail is None:  # otherwise, reloading a page would block more threads with the same file
                thumbnail = self._in_progress[key] = self._workers.put(self._thumbnail, entry, side)
            try:
                known = await self._wait_briefly(thumbnail)
            finally:
                if thumbnail.done():
                    self._in_progress.pop(key, None)
            if known is not None:
                self._thumbnails.put(key, known, len(known))
        return known

    def files_exist(self, entries: "Iterable[Entry]") -> dict[str, bool]:
        """Return whether image files exist and may be shown, by `Entry.file`.

        Do not call this from the event-loop thread. If a check takes longer than two seconds, all files count as
        existing, and so do the files of all calls in the next half minute.
        """
        files = list({entry.file for entry in entries})
        if time.monotonic() < self._skip_checks_until:
            return dict.fromkeys(files, True)
        check = self._workers.put(lambda: {file: self._exists_and_is_shown(file) for file in files})
        try:
            return check.result(_SECONDS_TO_CHECK)
        except TimeoutError:
            check.cancel()
            self._skip_checks_until = time.monotonic() + _SECONDS_WITHOUT_CHECK
            return dict.fromkeys(files, True)

    def drawings(self, entries: "Iterable[Entry]") -> dict[str, str]:
        """Return the cleaned sources of small SVG files, by `Entry.name`. Do not call this from the event-loop thread.

        Files that cannot be read or cleaned in time are omitted.
        """
        found: dict[str, str] = {}
        reading = self._workers.put(self._read_drawings, [entry for entry in entries if entry.is_vector], found)
        try:
            reading.result(_SECONDS_TO_CHECK)
        except TimeoutError:
            reading.cancel()
        return dict(found)

    async def _wait_briefly(self, future: "Future[Result]") -> Result | None:
        """Return the result of a future, or None if it takes too long.

        The work continues, because other requests may be waiting for the same file.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), _SECONDS)
        except TimeoutError:
            return None

    # --- Work in the threads

    def _exists_and_is_shown(self, file: str) -> bool:
        try:
            return bool(file) and os.path.exists(file) and self._may_show(file)  # noqa: PTH110 (see `Entry.is_there`)
        except ValueError:  # the name contains a null byte
            return False

    def _may_show(self, file: str) -> bool:
        return self._folders is None or is_within(file, self._folders)

    def _read(self, entry: "Entry") -> bytes:
        if not self._may_show(entry.file):
            raise RequestError(
                403, "this server does not show this image; to show it, start the server with --pictures and its folder"
            )
        return entry.span.read()

    def _read_drawings(self, entries: "Sequence[Entry]", found: dict[str, str]) -> None:
        for entry in entries:
            key = (entry.name, entry.stamp)
            known = self._drawings.get(key)
            if known is None:
                with suppress(UserError, RequestError, OSError, ValueError):  # ValueError: a null byte in the name
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
        except (UserError, RequestError, OSError, ValueError):  # ValueError: a null byte in the name
            return None
        return encode_image(image, "WEBP", quality=80, method=2)
