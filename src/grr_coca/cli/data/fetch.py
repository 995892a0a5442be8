"""`grr-coca data fetch`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from grr_coca.cli.output.progress import bars
from grr_coca.data.corpus.icons import build as icons
from grr_coca.data.corpus.scenes import build as scenes


@dataclass(frozen=True)
class Fetch:
    """Get a corpus that is too large to come with the code, and build it; what was interrupted goes on.

    `icons`: 250,000 icons of open design sets, with their names. npm fetches 113 MB, drawing them takes minutes.
    `scenes`: 16,560 drawings of two shapes, with captions that say where these stand; drawn in half a minute.

    Args:
        corpus: its name.
        out: a new folder for it; into the user's cache if not given, where recipes find it.
    """

    corpus: tyro.conf.Positional[Literal["icons", "scenes"]]
    out: Path | None = None


class _Corpus(NamedTuple):
    """How a corpus is built: the function that does it, the steps of its stages, and whether it came out as
    published; `odd_versions` tells what may be to blame if not."""

    build: Callable[[Callable[[str, int], None], Path | None], Path]
    stages: dict[str, int]
    is_published: Callable[[Path], bool]
    odd_versions: Callable[[], list[str]]


CORPORA = {
    "icons": _Corpus(icons.build_icons, icons.STAGES, icons.is_published, icons.odd_versions),
    "scenes": _Corpus(scenes.build_scenes, scenes.STAGES, scenes.are_published_scenes, list),
}


def fetch_corpus(action: Fetch) -> None:
    """Build the corpus, with progress, and say where it lies."""
    corpus = CORPORA[action.corpus]
    with bars(corpus.stages) as shown:
        folder = corpus.build(lambda stage, done: shown.update(stage, done, ""), action.out)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    counts = ", ".join(f"{name} {split['count']:,}" for name, split in card["splits"].items())
    print(f"{folder}: {counts}")
    if not corpus.is_published(folder):
        because = ", ".join(corpus.odd_versions()) or "it was built by another version of grr-coca"
        print(f"not to the byte the corpus of other machines ({because})")
