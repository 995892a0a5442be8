"""Samples, their splits, and tar shards in img2dataset's layout with bytes that depend on nothing else."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from raster import Pixels, decode

SHARD_BYTES = 4_000_000
BLOCK = 512
Signature = np.ndarray  # int32, (8 * 8 * 3,)


@dataclass(frozen=True)
class Sample:
    """One pair. `style` counts drawings on the card and is not stored in the shard."""

    key: str
    webp: bytes
    caption: str
    split: str
    style: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_-]+", self.key):
            raise ValueError(f"key {self.key!r}: use a-z, 0-9, _ and -, a dot would end the key in a tar shard")
        if not self.caption.strip():
            raise ValueError(f"{self.key}: empty caption")


@dataclass
class Corpus:
    """Everything that is written to one folder; `extra` goes into card.json as it is."""

    name: str
    title: str
    about: str
    split_rule: str
    faults: list[str]
    sources: list[str]
    samples: list[Sample]
    extra: dict[str, object] = field(default_factory=dict)


def unit_hash(salt: str, name: str) -> float:
    """A number in [0, 1) that depends on the name alone, so that adding a sample moves no other."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:8], "big") / 2**64


def pick_split(salt: str, name: str, shares: dict[str, float]) -> str:
    """Draw a split for a unit by hash; what the shares leave over is train."""
    draw = unit_hash(salt, name)
    for split, share in shares.items():
        if draw < share:
            return split
        draw -= share
    return "train"


def drop_identical(samples: Iterable[Sample]) -> list[Sample]:
    """Keep the first of equal decoded images, in the order given."""
    seen: set[bytes] = set()
    kept = []
    for sample in samples:
        digest = hashlib.sha256(decode(sample.webp).tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append(sample)
    return kept


def signature(pixels: Pixels) -> Signature:
    """8 × 8 block sums: their mean difference bounds that of the pixels from below."""
    blocks: np.ndarray = pixels.astype(np.int32).reshape(8, 8, 8, 8, 3).sum(axis=(1, 3))
    return blocks.reshape(-1)


def drop_near_train(samples: list[Sample], threshold: float) -> list[Sample]:
    """Drop evaluation images whose mean absolute difference to some training image is under the threshold."""
    train = np.stack([decode(s.webp) for s in samples if s.split == "train"])
    signatures = np.stack([signature(pixels) for pixels in train]).astype(np.float32)
    kept = []
    for sample in samples:
        if sample.split != "train":
            pixels = decode(sample.webp)
            bound = np.abs(signatures - signature(pixels).astype(np.float32)).mean(axis=1) / 64
            near = train[bound < threshold].astype(np.int16)
            if len(near) and np.abs(near - pixels.astype(np.int16)).mean(axis=(1, 2, 3)).min() < threshold:
                continue
        kept.append(sample)
    return kept


def _entry(name: str, body: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(body), 0o644, 0
    return info, io.BytesIO(body)


def _stored_bytes(sample: Sample) -> int:
    bodies = len(sample.webp), len(sample.caption.encode())
    return sum(BLOCK + -(-size // BLOCK) * BLOCK for size in bodies)


def _cut(samples: list[Sample]) -> list[list[Sample]]:
    """Cut a split into as few equal shards as stay under SHARD_BYTES."""
    count = max(1, -(-sum(map(_stored_bytes, samples)) // SHARD_BYTES))
    length = -(-len(samples) // count)
    return [samples[start : start + length] for start in range(0, len(samples), length)]


def write_shards(samples: list[Sample], folder: Path) -> dict[str, dict[str, object]]:
    """Write all splits in a fixed shuffle and return the card's `splits` entry."""
    doubled = [key for key, count in Counter(s.key for s in samples).items() if count > 1]
    if doubled:
        raise ValueError(f"keys used twice: {doubled[:5]}")
    by_split: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda s: unit_hash("order", s.key)):
        by_split[sample.split].append(sample)
    splits: dict[str, dict[str, object]] = {}
    for split in sorted(by_split, key=lambda s: (s != "train", not s.startswith("val"), s)):
        shards = {}
        for number, part in enumerate(_cut(by_split[split])):
            path = folder / f"{split}-{number:05d}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for sample in part:
                    tar.addfile(*_entry(f"{sample.key}.webp", sample.webp))
                    tar.addfile(*_entry(f"{sample.key}.txt", sample.caption.encode()))
            shards[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        splits[split] = {"count": len(by_split[split]), "shards": shards}
    return splits
