"""A cache of the most recently used items."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Recent(Generic[K, T]):
    """Opens items by number or other key, and keeps the `size` most recently used ones. `close` is called for dropped
    items.

    A copy in another process starts empty, because open files and memory maps are not valid there.
    """

    def __init__(self, open_: Callable[[K], T], close: Callable[[T], None] | None, size: int) -> None:
        self._open = open_
        self._close = close
        self._size = size
        self._items: OrderedDict[K, T] = OrderedDict()

    def __getitem__(self, key: K) -> T:
        if key in self._items:
            self._items.move_to_end(key)
            return self._items[key]
        item = self._items[key] = self._open(key)
        if len(self._items) > self._size:
            _, oldest = self._items.popitem(last=False)
            if self._close is not None:
                self._close(oldest)
        return item

    def __del__(self) -> None:
        if self._close is not None:
            for item in self._items.values():
                self._close(item)

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_items": OrderedDict()}
