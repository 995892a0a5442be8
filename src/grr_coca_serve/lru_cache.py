"""Cache of the most recently used values."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """Thread-safe cache of the most recently used values, by key.

    Args:
        size: Maximum total weight of all values. A single value with a larger weight is not stored.
    """

    def __init__(self, size: int) -> None:
        self._size, self._weight = size, 0
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        """Return the value of a key, or None if it is not stored."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def get_or_make(self, key: Key, make: Callable[[], Value], weigh: Callable[[Value], int] = lambda _: 1) -> Value:
        """Return the value of a key. If the value is not stored, create and store it.

        Several threads may create the same value at the same time. `weigh` returns the weight of the value.
        """
        value = self.get(key)
        if value is None:
            value = make()
            self.put(key, value, weigh(value))
        return value

    def put(self, key: Key, value: Value, weight: int = 1) -> None:
        """Store a value, and drop the least recently used values if the total weight is too large.

        A value whose own weight is too large is not stored, and only replaces an earlier value of its key.
        """
        with self._lock:
            self._weight -= self._values.pop(key, (None, 0))[1]
            if weight > self._size:
                return
            self._weight += weight
            self._values[key] = value, weight
            while self._weight > self._size:
                self._weight -= self._values.popitem(last=False)[1][1]
