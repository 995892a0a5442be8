"""The corpus as tar shards, in an order and with bytes that depend on the pairs alone."""

import hashlib
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from grr_coca.data.corpus.icons.drawn import DrawnSet, read_drawn
from grr_coca.data.corpus.icons.pairs import IconPair, unit_hash

PAIRS_PER_SHARD = 10_000
"""A shard of so many is about 20 MB: large enough that its index is kept in a file, and starts are quick."""


def write_shards(
    pairs: Iterable[IconPair], drawn_folder: Path, out: Path, on_pair: Callable[[int], None]
) -> dict[str, dict[str, object]]:
    """Write `SPLIT-00000.tar` … into a folder, each split in a fixed shuffle.

    Returns:
        for each split its number of pairs under `count`, and the sha256 of its shards by name under `shards`.
    """
    by_split: dict[str, list[IconPair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: unit_hash("icons order", pair.key)):
        by_split[pair.split].append(pair)
    sets = {prefix: read_drawn(drawn_folder, prefix) for prefix in sorted({pair.prefix for pair in pairs})}
    splits: dict[str, dict[str, object]] = {}
    done = 0
    for split in sorted(by_split, key=lambda split: (split != "train", split != "val", split)):
        shards = {}
        for number, start in enumerate(range(0, len(by_split[split]), PAIRS_PER_SHARD)):
            part = by_split[split][start : start + PAIRS_PER_SHARD]
            path = out / f"{split}-{number:05d}.tar"
            _write_shard(path, part, sets)
            shards[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            done += len(part)
            on_pair(done)
        splits[split] = {"count": len(by_split[split]), "shards": shards}
    return splits


def _write_shard(path: Path, pairs: Sequence[IconPair], sets: dict[str, DrawnSet]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for pair in pairs:
            members = {"webp": sets[pair.prefix].picture(pair.index), "txt": pair.caption.encode()}
            if pair.tags:
                # Pairs of a training split have them as further captions; those of the others, to search with.
                about = {"captions": [pair.caption, *pair.tags]} if pair.split == "train" else {"tags": pair.tags}
                members["json"] = json.dumps(about, ensure_ascii=False).encode()
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{pair.key}.{suffix}")
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))
