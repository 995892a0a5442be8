"""Tar shards as img2dataset writes them: members `KEY.jpg`, `KEY.txt` and others side by side.

The headers are read once; from then on every pair is one or two reads at a known offset, in any order.
"""

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from grr_coca.data.images import IMAGE_SUFFIXES
from grr_coca.data.pairs import RawPair
from grr_coca.errors import UserError


class _Span(NamedTuple):
    offset: int
    size: int


class _Entry(NamedTuple):
    key: str
    shard: int
    image: _Span
    text: _Span


class TarShards:
    """Pairs of one or more uncompressed tar files, in the order in which they lie there."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._entries = [entry for shard, path in enumerate(self.paths) for entry in _read_index(path, shard)]
        self._files: dict[int, int] = {}  # descriptors by shard, opened when first needed, per process

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        entry, name = self._entries[index], self.name(index)
        return RawPair(entry.key, name, self._read(entry.shard, entry.image), self._text(entry, name))

    def caption(self, index: int) -> str:
        """Read one caption, and not its image."""
        return self._text(self._entries[index], self.name(index))

    def name(self, index: int) -> str:
        """Where a pair lies, for messages."""
        entry = self._entries[index]
        return f"{self.paths[entry.shard]}: {entry.key}"

    def __getstate__(self) -> dict[str, object]:
        # A descriptor means nothing in another process.
        return {**vars(self), "_files": {}}

    def _text(self, entry: _Entry, name: str) -> str:
        try:
            return self._read(entry.shard, entry.text).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{name}.txt: not UTF-8 text ({error})") from error

    def _read(self, shard: int, span: _Span) -> bytes:
        if shard not in self._files:
            self._files[shard] = os.open(self.paths[shard], os.O_RDONLY)
        return os.pread(self._files[shard], span.size, span.offset)


def _read_index(path: Path, shard: int) -> list[_Entry]:
    images: dict[str, _Span] = {}
    texts: dict[str, _Span] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in filter(tarfile.TarInfo.isreg, tar):
                key, _, suffix = member.name.rpartition(".")
                span = _Span(member.offset_data, member.size)
                if suffix.lower() in IMAGE_SUFFIXES:
                    images[key] = span
                elif suffix == "txt":
                    texts[key] = span
            with path.open("rb") as file:
                file.seek(tar.offset)
                is_whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
            if not is_whole:
                raise UserError(f"{path}: the file ends before the tar does; copy or download it again")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not an uncompressed tar file that can be read ({error})") from error
    if not images:
        raise UserError(f"{path}: no pairs; expected members KEY.jpg (or .png, .webp …) and KEY.txt")
    missing = next((key for key in images if key not in texts), None)
    if missing is not None:
        raise UserError(f"{path}: {missing}: an image without a caption; expected a member {missing}.txt")
    return [_Entry(key, shard, span, texts[key]) for key, span in images.items()]
