"""An index of three icon sets, and where its page is seen: on a server, in an export, in a site as the icon site."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from browsing import hosted, static
from serving import serving

from grr_coca.model.checkpoint_files import bundled_folder
from grr_coca_icons.match.match_numbers import match_numbers
from grr_coca_icons.match.other_sets import CrossSetMatcher
from grr_coca_icons.match.picture_set import make_picture_set
from grr_coca_icons.site import with_others
from grr_coca_search.entry import Entry
from grr_coca_search.index import Index, IndexModel
from grr_coca_search.store import facets_of
from grr_coca_serve.site import Library, find_runtime, graphs_of, read_library, write_site

LINES = 'class="a" fill="none" stroke="currentColor" stroke-linecap="round" stroke-width="2"'
HOUSE = f'<path {LINES} d="M4 11 12 4l8 7v9H4z"/>'
HEART = f'<path {LINES} d="M12 20C5 15 3 12 3 8a5 5 0 0 1 9-2 5 5 0 0 1 9 2c0 4-2 7-9 12z"/>'
ARROW = f'<path {LINES} d="M5 12h14M13 6l6 6-6 6"/>'
CASTLE = '<path fill="currentColor" d="M3 21V5h4v3h3V5h4v3h3V5h4v16h-6v-5h-6v5z"/>'
SETS = [
    ("lucide", "Lucide", "ISC", {"house": HOUSE, "heart": HEART, "arrow-right": ARROW}),
    ("tabler", "Tabler Icons", "MIT", {"home": HOUSE, "heart": HEART, "arrow-narrow-right": ARROW}),
    ("castles", "Castles", "CC-BY-4.0", {"castle": CASTLE, "heart-line": HEART}),
]
HOSTILE = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 24 24"
    width="24" height="24" onload="fetch('https://evil.test/')">
  <script>document.title = "run"</script><style>@import url(https://evil.test/a.css); path { stroke: #d21 }</style>
  <a xlink:href="https://evil.test/"><path d="M0 0"/></a>
  <foreignObject><iframe xmlns="http://www.w3.org/1999/xhtml" src="https://evil.test/"/></foreignObject>
  <path d="M4 11 12 4l8 7v9H4z" fill="none" stroke-width="2" onclick="alert(1)"/></svg>"""
"""A house that wants to run and load things."""


def write_icon_index(folder: Path) -> Path:
    """Index the icon sets, and a folder with an SVG file that is not to be trusted."""
    for day, (prefix, title, licence, bodies) in enumerate(SETS):
        about = {"name": title, "author": {"name": "Ada"}, "license": {"spdx": licence}}
        icons = {name: {"body": body} for name, body in bodies.items()}
        content = {"prefix": prefix, "info": about, "icons": icons, "width": 24, "height": 24}
        (folder / f"{prefix}.json").write_text(json.dumps(content))
        os.utime(folder / f"{prefix}.json", (86_400 * day, 86_400 * day))  # a site shows the newest icons first
    (folder / "found").mkdir()
    (folder / "found" / "hostile.svg").write_text(HOSTILE)
    with Index.open(folder / "index", create=True) as made:
        made.add([str(folder / "found"), *(str(folder / f"{prefix}.json") for prefix, *_ in SETS)])
    return folder / "index"


def write_icon_sites(index: Path, folder: Path) -> dict[str, Path]:
    """Write what `export web` writes of it, and a site of its sets as the icon site is."""
    with Index.open(index) as opened, graphs_of(bundled_folder("icons")) as graphs:
        exported = with_others(read_library(opened.store, opened.model.curve), opened.model)
        write_site(graphs, folder / "export", find_runtime(), exported, title="Icons", model="icons")
        drawn = _icon_library(list(opened.store.everything()), opened.model)
        write_site(graphs, folder / "icons", find_runtime(), drawn, title="Icons", model="icons")
    return {"export": folder / "export", "icons": folder / "icons"}


def _icon_library(everything: list, model: IndexModel) -> Library:
    """The icons of sets as `scripts/build_datasets/icon_site.py` puts them into a site."""
    kept = [(entry, vector) for entry, vector in everything if "icon" in entry.fields]
    bodies = {f"{prefix}:{name}": body for prefix, _, _, icons in SETS for name, body in icons.items()}
    vectors, numbers = np.array([vector for _, vector in kept]), match_numbers(model.folder)
    assert numbers is not None
    entries = [
        Entry(
            name=str(entry.fields["icon"]),
            root="",
            file="",
            offset=None,
            stamp=entry.stamp,
            digest="",
            phash=entry.phash,
            width=24,
            height=24,
            caption=entry.caption,
            fields={name: entry.fields[name] for name in ("set", "licence", "author")},
        )
        for entry, _ in kept
    ]
    pictures = make_picture_set([entry.name for entry in entries], [()] * len(kept), vectors, numbers, model)
    return Library(
        entries=entries,
        vectors=vectors,
        facets=facets_of(entries, ("set", "licence")),
        drawings=[((0, 0, 24, 24), bodies[entry.name]) for entry in entries],
        words=[entry.name for entry in entries],
        curve=model.curve,
        others=CrossSetMatcher(pictures, numbers).all_equivalents(),
    )


PLACES = ("serve", "export", "icons")


@contextmanager
def opened_place(name: str, index: Path, sites: dict[str, Path]) -> Iterator[str]:
    """The address of one of `PLACES`."""
    if name == "serve":
        with serving(index) as client:
            yield client.address
    else:
        with hosted(static(sites[name])) as address:
            yield address
