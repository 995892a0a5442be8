"""How much memory pictures may take together while they are decoded, and its return to the system."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LARGE = 32 * 2**20
"""Memory of this many bytes is returned to the system when it is free."""


class Budget:
    """A number of bytes that threads share. Each takes its part, and waits for it, in the order in which they came."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Take so many bytes for a block, at most all there are."""
        size = min(size, self.size)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()
            if size >= _LARGE and _trim is not None:
                _trim(0)  # the C library keeps gigabytes after a few large pictures


_trim = None
with suppress(OSError, AttributeError, TypeError):  # other libraries than that of GNU do not have it
    _trim = ctypes.CDLL(None).malloc_trim
