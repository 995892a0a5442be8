"""What a demo's report shows of each arm besides its rows: where it looks, and what it finds for some texts."""

from dataclasses import dataclass
from pathlib import Path

from grr_coca.checkpoint import from_pretrained
from grr_coca.data.sources.open import open_source
from grr_coca.study.demo.showcase import ExplainedImage, SearchHits, explain_some, search

NUM_EXPLAINED = 4


@dataclass(frozen=True)
class Exhibits:
    """Heat maps of some images, and the images found for each query."""

    heat_maps: list[ExplainedImage]
    searches: list[SearchHits]


def make_exhibits(run: Path, showcase: str, queries: tuple[str, ...], num_hits: int) -> Exhibits:
    """Those of a pretrained model.

    Args:
        run: the folder of its run.
        showcase: the split, as `open_source` takes it.
        queries: texts to search for.
        num_hits: images shown of each.
    """
    checkpoint, source = from_pretrained(run), open_source(showcase)
    return Exhibits(explain_some(checkpoint, source, NUM_EXPLAINED), search(checkpoint, source, queries, num_hits))
