"""`grr-coca data fetch`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from grr_coca.cli.output.progress import bars
from grr_coca.data.corpus.icons.build import STAGES, build_icons, is_published, odd_versions


@dataclass(frozen=True)
class Fetch:
    """Get a corpus that is too large to come with the code, and build it; what was interrupted goes on.

    `icons`: some 270,000 icons of open design sets, with their names. npm fetches 120 MB, drawing them takes minutes.

    Args:
        corpus: its name.
        out: a new folder for it; into the user's cache if not given, where recipes find it.
    """

    corpus: tyro.conf.Positional[Literal["icons"]]
    out: Path | None = None


def fetch_corpus(action: Fetch) -> None:
    """Build the corpus, with progress, and say where it lies."""
    with bars(STAGES) as shown:
        folder = build_icons(lambda stage, done: shown.update(stage, done, ""), action.out)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    counts = ", ".join(f"{name} {split['count']:,}" for name, split in card["splits"].items())
    print(f"{folder}: {counts}")
    if not is_published(folder):
        because = ", ".join(odd_versions()) or "it was built by another version of grr-coca"
        print(f"not to the byte the corpus of other machines ({because})")
