"""Many strings in little memory, and stable numeric ids of strings."""

import hashlib
from collections.abc import Iterable

import numpy as np


class Strings:
    """A fixed list of strings, kept as one block of UTF-8 with offsets. Millions of strings need no object each."""

    def __init__(self, strings: Iterable[str]) -> None:
        content, ends = bytearray(), []
        for string in strings:
            content += string.encode("utf-8", "surrogatepass")
            ends.append(len(content))
        self._content = bytes(content)
        self._ends = np.array(ends, dtype=np.uint64)

    def buffers(self) -> tuple[bytes, memoryview]:
        """All strings as one block, and where in it each ends."""
        return self._content, self._ends.data

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return self._content[start : int(self._ends[index])].decode("utf-8", "surrogatepass")


def stable_id(text: str) -> int:
    """A 63-bit id of a text, the same in every process."""
    content = text.encode("utf-8", "surrogatepass")  # file names that are not UTF-8 hold lone surrogates
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1
