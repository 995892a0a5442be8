"""Set fresh tests apart from the training pairs of the corpus `icons`: `python studies/icons_adamw/set_apart.py`.

Reads `train-*.tar` of the corpus and writes the folder `icons-apart` beside it, before any model of this study is
trained:

- `test_known`: 5,000 drawings in styles that training knows, each of another caption; `val_known`: 2,000 more. All
  drawings of such a thing (a caption in a design family) leave training, whichever variant of the family they are of
- `test_apart_FAMILY`: families that training never sees, at most 2,000 drawings of each, each of another caption
- `train`: all other pairs, in their order

Everything is chosen by hashes of names, so no two runs of it differ in a byte: `set_apart.json` has the digests of all
shards. The shards of the corpus are only read.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

FAMILIES_FILE = Path(__file__).parents[2] / "scripts" / "build_datasets" / "icon_families.json"
DIGESTS_FILE = Path(__file__).with_suffix(".json")
"""The sha256 of each shard that the published corpus gives."""
APART = ("ph", "icon-park", "pepicons", "uil", "teenyicons", "marketeq")
"""Families of `test_apart`, by their first sets: six weights, two colours, hand-drawn, thin, tiny, many colours."""
NUM_KNOWN = {"test_known": 5_000, "val_known": 2_000}
MAX_APART = 2_000
PAIRS_PER_SHARD = 10_000


class Pair(NamedTuple):
    """A pair of a shard. `key` is `SET_NAME`; `more` has further captions, and is empty without."""

    key: str
    webp: bytes
    caption: bytes
    more: bytes

    @property
    def name(self) -> tuple[str, str]:
        """All that the split is chosen by: key and caption."""
        return self.key, self.caption.decode()


def pairs_of(shard: Path) -> Iterator[Pair]:
    """Yield the pairs of a shard in their order."""
    with tarfile.open(shard) as tar:
        key = ""
        files: dict[str, bytes] = {}
        for member in tar:
            name, _, suffix = member.name.rpartition(".")
            if name != key and files:
                yield Pair(key, files["webp"], files["txt"], files.get("json", b""))
                files = {}
            key = name
            files[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
        if files:
            yield Pair(key, files["webp"], files["txt"], files.get("json", b""))


def choose(names: Iterable[tuple[str, str]], families: Mapping[str, str]) -> dict[str, str]:
    """Return the split of each pair that leaves training, by its key; `` if it is in none.

    Args:
        names: key and caption of each pair.
        families: the family of each set.

    Raises:
        ValueError: there are too few things for `test_known` and `val_known`.
    """
    things: dict[tuple[str, str], list[str]] = {}
    for key, caption in names:
        things.setdefault((families[key.partition("_")[0]], caption), []).append(key)
    splits: dict[str, str] = {}
    taken: dict[str, set[str]] = {}
    to_fill = dict(NUM_KNOWN)
    for family, caption in sorted(things, key=lambda thing: _hash("/".join(thing))):
        keys = sorted(things[family, caption], key=_hash)
        captions = taken.setdefault(family if family in APART else "known", set())
        if family in APART:
            splits |= dict.fromkeys(keys, "")
            if caption not in captions and len(captions) < MAX_APART:
                splits[keys[0]] = f"test_apart_{family}"
                captions.add(caption)
        elif to_fill and caption not in captions:
            split = next(iter(to_fill))
            splits |= {**dict.fromkeys(keys, ""), keys[0]: split}
            captions.add(caption)
            to_fill = {name: left - (name == split) for name, left in to_fill.items() if left - (name == split)}
    if to_fill:
        raise ValueError(f"too few things in {len(things):,}: {to_fill} are lacking")
    return splits


def set_apart(source: Path, target: Path, families: Mapping[str, str]) -> dict[str, int]:
    """Write the shards of all splits from those of `train` in `source`. Returns the number of pairs of each split."""
    target.mkdir(parents=True, exist_ok=True)
    shards = sorted(source.glob("train-*.tar"))
    splits = choose((pair.name for shard in shards for pair in pairs_of(shard)), families)
    kept: dict[str, list[Pair]] = {}
    counts = {"train": 0}
    for shard in shards:
        left = []
        for pair in pairs_of(shard):
            if pair.key not in splits:
                left.append(pair)
            elif splits[pair.key]:
                kept.setdefault(splits[pair.key], []).append(pair._replace(more=b""))
        _write(target / shard.name, left)
        counts["train"] += len(left)
    for split, pairs in sorted(kept.items()):
        pairs.sort(key=lambda pair: _hash(pair.key))
        for number, start in enumerate(range(0, len(pairs), PAIRS_PER_SHARD)):
            _write(target / f"{split}-{number:05d}.tar", pairs[start : start + PAIRS_PER_SHARD])
        counts[split] = len(pairs)
    return counts


def read_families() -> dict[str, str]:
    """Return the family of each set, named by its first set."""
    groups = json.loads(FAMILIES_FILE.read_text(encoding="utf-8"))
    return {prefix: group[0] for group in groups for prefix in group}


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of each shard of a folder, by its name."""
    return {shard.name: hashlib.sha256(shard.read_bytes()).hexdigest() for shard in sorted(folder.glob("*.tar"))}


def _hash(name: str) -> bytes:
    return hashlib.sha256(f"icons apart:{name}".encode()).digest()


def _write(shard: Path, pairs: Sequence[Pair]) -> None:
    """Write a shard whose bytes depend on the pairs alone; it gets its name when it is whole."""
    unfinished = shard.with_suffix(".part")
    with tarfile.open(unfinished, "w", format=tarfile.PAX_FORMAT) as tar:
        for pair in pairs:
            for suffix, content in (("webp", pair.webp), ("txt", pair.caption), ("json", pair.more)):
                if content:
                    member = tarfile.TarInfo(f"{pair.key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    unfinished.replace(shard)


def main() -> int:
    """Set the tests apart, print how many pairs each split has, and return 1 if a shard is not that of the study."""
    from grr_coca.common.files import user_cache

    parser = argparse.ArgumentParser(description="Set fresh tests apart from the training pairs of the corpus icons.")
    parser.add_argument("--source", type=Path, default=user_cache() / "icons", help="folder of the corpus")
    parser.add_argument("--target", type=Path, default=user_cache() / "icons-apart", help="folder of the new shards")
    options = parser.parse_args()
    if not any(options.source.glob("train-*.tar")):
        parser.error(f"{options.source} has no train-*.tar; `python scripts/build_datasets icons` builds the corpus")
    for split, count in set_apart(options.source, options.target, read_families()).items():
        print(f"{split:<24} {count:>8,}")
    found, published = digests(options.target), json.loads(DIGESTS_FILE.read_text(encoding="utf-8"))
    other = sorted(name for name in {*found, *published} if found.get(name) != published.get(name))
    if other:
        print(f"{options.target}: not to the byte the shards of the study: {', '.join(other)}", file=sys.stderr)
    return bool(other)


if __name__ == "__main__":
    sys.exit(main())
