"""`grr-coca duplicates`."""

from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.hits import shown_path
from grr_coca.cli.output import say, to_json
from grr_coca.search.duplicates import duplicate_groups
from grr_coca.search.index import open_store


def run(
    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")],
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """List the pictures of an index that look the same, group by group: the largest in pixels first, the others below.

    Args:
        index: folder, or http://HOST:PORT/NAME of a Milvus server.
        json: print JSON lines, a list of paths in each.
    """
    store = open_store(index)
    assert store is not None
    try:
        groups = duplicate_groups(store)
    finally:
        store.close()
    for group in groups:
        paths = [entry.name for entry in group.entries]
        if json:
            say(to_json({"paths": paths}))
        else:
            best, *others = (shown_path(entry.name) for entry in group.entries)
            say("\n".join([best, *(f"    {path}" for path in others)]))
    if not json:
        spare = sum(len(group.entries) - 1 for group in groups)
        say(f"{len(groups):,} groups, {spare:,} pictures more than needed in {Path(index).name or index}")
