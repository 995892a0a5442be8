"""A cache of the most recently used items."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Opens items by number, and keeps the `size` most recently used ones. `close` is called for dropped items.

    A copy in another process starts empty, because open files and memory maps are not valid there.
    """

    def __init__(self, open_: Callable[[int], T], close: Callable[[T], None] | None, size: int) -> None:
        self._open = open_
        self._close = close
        self._size = size
        self._items: OrderedDict[int, T] = OrderedDict()

    def __getitem__(self, number: int) -> T:
        if number in self._items:
            self._items.move_to_end(number)
            return self._items[number]
        item = self._items[number] = self._open(number)
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
