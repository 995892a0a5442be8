"""Build the corpus `icons` from pinned npm packages: 240,000 icons, into the user's cache, where recipes find them.

    python scripts/build_datasets icons

npm fetches 113 MB, and drawing takes minutes; an interrupted build goes on.
"""

import argparse
import json
import sys
from pathlib import Path

from grr_coca.cli import exit_code
from grr_coca.cli.progress import bars
from grr_coca.common.errors import require_extra


def main() -> int:
    """Build the corpus with progress, say where it lies, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="build_datasets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", choices=["icons"], help="the corpus to build")
    parser.add_argument("--out", type=Path, help="a new folder for it (default: in the user's cache)")
    options = parser.parse_args()
    require_extra("icons", "the corpus of icons")
    import icons

    try:
        with bars(icons.STAGES) as shown:
            folder = icons.build(lambda stage, done: shown.update(stage, done, ""), options.out)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    counts = ", ".join(f"{split} {entry['count']:,}" for split, entry in card["splits"].items())
    print(f"{folder}: {counts}")
    if because := icons.why_other_bytes(folder):
        print(f"not to the byte the corpus of other machines ({because})")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
