"""Write `datasets/pictograms` anew, with one more drawing style left out: `python studies/styles/leave_out.py twemoji`.

Shards go to `studies/styles/runs/without_STYLE`, of the same names and in the same order, without that style. Its
drawings of captions that training still has in another style go to `left_out-00000.tar`: 500 of them, by the hash of
the key, so that each style is searched among equally many. No two runs of it differ in a byte.
"""

import argparse
import hashlib
import io
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PICTOGRAMS = Path(__file__).parents[2] / "datasets" / "pictograms"
STYLES = ("fluent-emoji-flat", "streamline-emojis", "twemoji")
SIZE = 500


class Drawing(NamedTuple):
    """A pair of a shard: `key` is `STYLE-HEXCODE`."""

    key: str
    webp: bytes
    caption: bytes

    def is_of(self, style: str) -> bool:
        """Return whether it is drawn in the style."""
        return self.key.startswith(f"{style}-")


def drawings(shard: Path) -> Iterator[Drawing]:
    """Yield the pairs of a shard in their order."""
    with tarfile.open(shard) as tar:
        files = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    for (image, webp), (text, caption) in zip(files[::2], files[1::2], strict=True):
        key = image.removesuffix(".webp")
        assert text == f"{key}.txt", f"{shard}: {image} is followed by {text}"
        yield Drawing(key, webp, caption)


def write(shard: Path, pairs: Iterable[Drawing]) -> None:
    """Write a shard whose bytes depend on the pairs alone; it gets its name when it is whole."""
    unfinished = shard.with_suffix(".part")
    with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            for name, data in ((f"{pair.key}.webp", pair.webp), (f"{pair.key}.txt", pair.caption)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    unfinished.replace(shard)


def leave_out(style: str, source: Path, target: Path) -> None:
    """Write the shards of `source` without the style, and those of the style, to `target`.

    Of `val` and `test` too, captions that training lost with the style are left out.
    """
    target.mkdir(parents=True, exist_ok=True)
    shards = {shard.name: [*drawings(shard)] for shard in sorted(source.glob("*.tar"))}
    trained = [pair for name, pairs in shards.items() if name.startswith("train-") for pair in pairs]
    known = {pair.caption for pair in trained if not pair.is_of(style)}
    for name, pairs in shards.items():
        is_of_known = name.startswith(("val-", "test-"))
        kept = (pair for pair in pairs if not pair.is_of(style) and (pair.caption in known or not is_of_known))
        write(target / name, kept)
    left_out = [pair for pair in trained if pair.is_of(style) and pair.caption in known]
    left_out.sort(key=lambda pair: hashlib.sha256(pair.key.encode()).digest())
    write(target / "left_out-00000.tar", left_out[:SIZE])


def main() -> int:
    """Leave out the styles of the command line."""
    parser = argparse.ArgumentParser(description="Write datasets/pictograms anew, with one more style left out.")
    parser.add_argument("styles", nargs="+", choices=STYLES, metavar="STYLE", help=", ".join(STYLES))
    for style in parser.parse_args().styles:
        leave_out(style, PICTOGRAMS, Path(__file__).parent / "runs" / f"without_{style}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
