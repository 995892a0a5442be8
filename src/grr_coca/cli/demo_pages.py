"""The closing of a demo: an index of its own pictures by the model that it has just trained, and a search in it.

The opening of a demo, before it trains: a few captions and searches by the model that comes with the code.
"""

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

import grr_coca
from grr_coca.cli.hits import hit_lines
from grr_coca.cli.output import called_as
from grr_coca.data.images import decode_image
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.inference.model import ImageTextModel
from grr_coca.registry import DEFAULT
from grr_coca.search.index import Index
from grr_coca.study.demo.arms import INDEX_FOLDER
from grr_coca.study.demo.plan import demo_recipes
from grr_coca.study.plan import DemoPlan

NUM_CAPTIONED, NUM_QUERIES, NUM_OPENING_HITS = 6, 5, 3


def opening_lines(plan: DemoPlan) -> Iterator[str]:
    """Lines with captions of some drawings of the plan's showcase, and with the drawings that some queries find."""
    pretrain = next(iter(demo_recipes(plan).values()))
    source = open_source(pretrain.data.test[plan.showcase])
    model = grr_coca.load(DEFAULT, "cpu")
    yield f"The model that comes with the code, '{DEFAULT}', on drawings of {plan.showcase}, which it never saw:"
    yield from _captions(model, source)
    yield f"Searched for among all {len(source)} of them:"
    yield from _searches(model, source, plan.queries[:NUM_QUERIES])


def _captions(model: ImageTextModel, source: PairSource) -> Iterator[str]:
    step = max(1, len(source) // NUM_CAPTIONED)
    indices = range(0, len(source), step)[:NUM_CAPTIONED]
    pictures = [_picture(source, index) for index in indices]
    for index, said in zip(indices, model.caption(pictures), strict=True):
        yield f"  {_symbol(source[index].key)}  {said}"


def _searches(model: ImageTextModel, source: PairSource, queries: tuple[str, ...]) -> Iterator[str]:
    cosines = model.similarity([_picture(source, index) for index in range(len(source))], queries)  # N M
    best = cosines.topk(min(NUM_OPENING_HITS, len(source)), dim=0).indices.T.tolist()
    for query, hits in zip(queries, best, strict=True):
        yield f"  {query}: {'  '.join(_symbol(source[index].key) for index in hits)}"


def _picture(source: PairSource, index: int) -> Image.Image:
    pair = source[index]
    return decode_image(pair.image, pair.name)


def _symbol(key: str) -> str:
    """The emoji that the drawing `STYLE-CODES` shows, if the terminal can print it; else the key itself."""
    try:
        symbol = "".join(chr(int(code, 16)) for code in key.partition("-")[2].split("-"))
        symbol.encode(sys.stdout.encoding or "ascii")
    except (ValueError, OverflowError):
        return key
    return symbol or key


NUM_HITS = 3


def closing_lines(plan: DemoPlan, checkpoint: Path, out: Path) -> Iterator[str]:
    """Lines with what a search for the plan's first query finds, and with the commands that index and search.

    Args:
        plan: its showcase has the pictures.
        checkpoint: the run of the model.
        out: folder of the demo, where the index is made.
    """
    pretrain = next(iter(demo_recipes(plan).values()))
    pictures, folder, query = str(pretrain.data.test[plan.showcase]), out / INDEX_FOLDER, plan.queries[0]
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier demo, whose model was another
    with Index.open(folder, checkpoint, create=True) as index:
        index.add(pictures)
        found = index.search(query, NUM_HITS)
    yield shlex.join([*called_as(), "index", pictures, "--checkpoint", str(checkpoint), "--out", str(folder)])
    yield shlex.join([*called_as(), "search", str(folder), query, "-n", str(NUM_HITS)])
    yield from hit_lines(found)
