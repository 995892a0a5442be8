"""The index of a shard. It is made once from the shard's headers, and kept in a small file for the next start.

The file lies beside the shard, or in the user's cache if that folder is not writable. It is a line of JSON, which says
which state of the shard it describes, and two raw arrays. Nothing in it can be executed.
"""

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np

from grr_coca.data.sources.shards.tar_scan import CAUSES, ROW, ShardIndex, scan_shard
from grr_coca.files import user_cache, write_whole

VERSION = 2
HEADER_SIZE = 512
MIN_SHARD_SIZE = 2**24
"""Smaller shards are indexed again at each start. That takes a fraction of a second, and leaves no file."""


def open_index(path: Path) -> tuple[ShardIndex, Path | None]:
    """The index of a shard, and the file that holds it, if there is one.

    The index is made now if the file is missing, outdated or damaged.

    Raises:
        UserError: the shard cannot be indexed.
    """
    if not path.is_file() or path.stat().st_size < MIN_SHARD_SIZE:
        return scan_shard(path), None
    places = (path.with_name(path.name + ".index"), user_cache() / _cache_name(path))
    for place in places:
        index = read_index(place, path)
        if index is not None:
            return index, place
    state = _state(path)
    index = scan_shard(path)
    if _state(path) != state:
        return index, None  # the shard is still being written, so its index is not kept
    for place in places:
        with contextlib.suppress(OSError):
            write_index(index, place, path)
            return read_index(place, path) or index, place
    return index, None


def write_index(index: ShardIndex, place: Path, shard: Path) -> None:
    """Write an index to a file, for `read_index`."""
    if place.parent != shard.parent:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = index.rows.tobytes() + index.keys
    header: dict[str, object] = {**_state(shard), "pairs": len(index), "is_whole": index.is_whole}
    header["digest"] = _digest(header, content)
    line = json.dumps(header).encode().ljust(HEADER_SIZE - 1) + b"\n"
    write_whole(place, line + content)


def read_index(place: Path, shard: Path) -> ShardIndex | None:
    """The index in a file, mapped into memory. None if it is missing, damaged, or describes another state of the
    shard."""
    try:
        mapped = np.memmap(place, np.uint8, "r")
        header = json.loads(mapped[:HEADER_SIZE].tobytes())
        content = mapped[HEADER_SIZE:]
        digest = header.pop("digest")
        is_of_shard = all(header[key] == value for key, value in _state(shard).items())
        if not is_of_shard or digest != _digest(header, content.data):
            return None
        end = header["pairs"] * ROW.itemsize
        rows = content[:end].view(ROW)
        if len(rows) and rows["cause"].max() > len(CAUSES):
            return None
        return ShardIndex(rows, content[end:].tobytes(), bool(header["is_whole"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _state(shard: Path) -> dict[str, int]:
    status = shard.stat()
    return {"version": VERSION, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _cache_name(path: Path) -> str:
    whole = str(path.absolute()).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(whole, digest_size=16).hexdigest() + ".index"


def _digest(header: dict[str, object], content: bytes | memoryview) -> str:
    digest = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    digest.update(content)
    return digest.hexdigest()
