"""Builds the corpus `icons`: packages, drawings, captions, splits, shards, cards.

It lies in the user's cache. Drawings are kept set by set while a build is under way, so that one that was interrupted
goes on; the corpus appears when all of it is there.
"""

import hashlib
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from grr_coca.data.corpus.icons.card import write_cards
from grr_coca.data.corpus.icons.drawn import draw_sets, read_logo_names
from grr_coca.data.corpus.icons.held_out import HeldOut
from grr_coca.data.corpus.icons.packages import Archives
from grr_coca.data.corpus.icons.pairs import select
from grr_coca.data.corpus.icons.sets import kept_sets
from grr_coca.data.corpus.icons.shards import write_shards
from grr_coca.data.corpus.icons.tags import read_tags
from grr_coca.data.corpus.place import is_built
from grr_coca.errors import UserError
from grr_coca.extras import require_extra
from grr_coca.files import user_cache, whole_folder

NAME = "icons"

DRAWN_WITH = {"resvg-py": "0.5.0", "pillow": "13.0.0"}
"""The packages that decide the pictures' bytes. With other versions the corpus is good, and not the same."""

PUBLISHED = "a2a6ea8d89e0fe5e51befa1c776e5bf4cd01ea51197b01cbced236da6bc6d58c"
"""The sha256 of the corpus's `card.json`, which has those of all shards: what everybody has who builds this version."""

NEEDED_BYTES = 1_300_000_000
"""Packages, drawings and shards together, with some room."""


OnProgress = Callable[[str, int], None]
"""Told the stage (a name of STAGES) and how many of its steps are done."""

STAGES = {"packages": 5, "drawings": 288_000, "shards": 248_000}
"""About how many steps each stage has: archives, icons, pairs."""


def icons_folder() -> Path:
    """Where the corpus lies once it is built."""
    return user_cache() / NAME


def build_icons(on_progress: OnProgress, folder: Path | None = None, archives: Archives | None = None) -> Path:
    """Fetch, draw and write the corpus, or go on where that was interrupted; returns its folder.

    Args:
        on_progress: told how far it is.
        folder: where it goes; None: into the user's cache.
        archives: the packages; None: those of the user's cache.

    Raises:
        UserError: a package cannot be had or is not the pinned one, or the disk is too small.
    """
    folder = folder or icons_folder()
    if is_built(folder, NAME):
        return folder
    require_extra("icons", "the corpus of icons")
    archives = archives or Archives(user_cache() / "packages")
    work = folder.with_name(f"{folder.name}.work")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _require_space(folder.parent, work)
        archives.fetch(lambda done: on_progress("packages", done))
        _build(archives, work, folder, on_progress)
        shutil.rmtree(work)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be built ({error.strerror or error}); what is drawn stays in {work}"
        ) from error
    return folder


def _require_space(place: Path, work: Path) -> None:
    there = sum(path.stat().st_size for path in work.glob("*")) if work.is_dir() else 0
    free = shutil.disk_usage(place).free
    if free + there < NEEDED_BYTES:
        raise UserError(
            f"{place}: {free / 1e9:.1f} GB are free, and the corpus takes {NEEDED_BYTES / 1e9:.1f} while it is built; "
            "make room, or set XDG_CACHE_HOME to a folder on another disk"
        )


def _build(archives: Archives, work: Path, folder: Path, on_progress: OnProgress) -> None:
    collections = archives.json("iconify", "collections.json")
    sets = kept_sets(collections)
    draw_sets(archives, sets, work, lambda done: on_progress("drawings", done))
    selection = select(sets, work, read_logo_names(archives), read_tags(archives), HeldOut.read())
    with whole_folder(folder) as partial:
        splits = write_shards(selection.pairs, work, partial, lambda done: on_progress("shards", done))
        write_cards(partial, archives.packages.values(), collections, sets, selection, splits)


def is_published(folder: Path) -> bool:
    """True if a corpus is to the byte what this version of the builder makes everywhere."""
    return hashlib.sha256((folder / "card.json").read_bytes()).hexdigest() == PUBLISHED


def odd_versions() -> list[str]:
    """Installed packages by which the pictures may differ from those of other machines, with both versions."""
    found = {name: version(name) for name in DRAWN_WITH}
    return [f"{name} {found[name]}, not {wanted}" for name, wanted in DRAWN_WITH.items() if found[name] != wanted]
