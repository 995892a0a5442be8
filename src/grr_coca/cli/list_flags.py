"""Flags that take several values: all after one flag, or one after each of several, or both."""

from itertools import chain
from typing import Annotated, TypeVar

import tyro

T = TypeVar("T")

Lists = Annotated[tuple[tuple[T, ...], ...], tyro.conf.UseAppendAction]
"""The type of such a flag: the values behind each occurrence. With a plain tuple, the last occurrence would win."""


def joined(lists: tuple[tuple[T, ...], ...]) -> tuple[T, ...]:
    """The values of a flag, however they were given."""
    return tuple(chain.from_iterable(lists))
