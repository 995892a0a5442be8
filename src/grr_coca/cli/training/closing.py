"""The closing of a demo: an index of its own pictures by the model that it has just trained, and a search in it."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from grr_coca.cli.output.say import called_as
from grr_coca.cli.searching.shown import hit_lines
from grr_coca.search.index import Index
from grr_coca.study.demo.comparison import INDEX_FOLDER
from grr_coca.study.demo.plan import demo_recipes
from grr_coca.study.plan.folder import DemoPlan

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
