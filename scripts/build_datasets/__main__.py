"""Build the corpus `icons` from pinned npm packages: 240,000 icons, into the user's cache, where recipes find them.

    python scripts/build_datasets icons

npm fetches 113 MB, and drawing takes minutes; an interrupted build goes on.
"""

import argparse
import json
import sys
from pathlib import Path

from grr_coca.cli.progress import bars
from grr_coca.common.errors import UserError
from grr_coca.common.extras import require_extra


def build(out: Path | None) -> int:
    """Build the corpus with progress, say where it lies, and return the exit code.

    Args:
        out: a new folder for it; None: in the user's cache.
    """
    try:
        require_extra("icons", "the corpus of icons")
        import icons

        with bars(icons.STAGES) as shown:
            folder = icons.build(lambda stage, done: shown.update(stage, done, ""), out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    counts = ", ".join(f"{split} {entry['count']:,}" for split, entry in card["splits"].items())
    print(f"{folder}: {counts}")
    if because := icons.why_other_bytes(folder):
        print(f"not to the byte the corpus of other machines ({because})")
    return 0


def main() -> int:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(
        prog="build_datasets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", choices=["icons"], help="the corpus to build")
    parser.add_argument("--out", type=Path, help="a new folder for it (default: in the user's cache)")
    return build(parser.parse_args().out)


if __name__ == "__main__":
    sys.exit(main())
