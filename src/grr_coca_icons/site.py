"""Add equivalents in other icon sets to an exported page."""

from dataclasses import replace

from grr_coca.cli.progress import bars
from grr_coca_icons.match.match_numbers import match_numbers
from grr_coca_icons.match.other_sets import CrossSetMatcher
from grr_coca_icons.match.picture_set import aliases_in, make_picture_set
from grr_coca_search.index import IndexModel
from grr_coca_serve.site import Library


def with_others(library: Library, model: IndexModel) -> Library:
    """Return a copy of a library in which each icon has its equivalents in the library's other icon sets.

    If the library has fewer than two icon sets, or its model has no match parameters, the library itself is returned. A
    progress bar is shown, because the search takes minutes for 30,000 icons.
    """
    rows = [row for row, entry in enumerate(library.entries) if "icon" in entry.fields]
    names = [str(library.entries[row].fields["icon"]) for row in rows]
    numbers = match_numbers(model.folder)
    num_sets = len({name.partition(":")[0] for name in names})
    if numbers is None or num_sets < 2:
        return library
    aliases = [aliases_in(library.entries[row].fields) for row in rows]
    pictures = make_picture_set(names, aliases, library.vectors[rows], numbers, model)
    others: list[list[tuple[int, float]]] = [[] for _ in library.entries]
    with bars({"icon sets": num_sets}) as progress:
        equivalents = CrossSetMatcher(pictures, numbers).all_equivalents(
            lambda done, _: progress.update("icon sets", done, "")
        )
    for row, found in zip(rows, equivalents, strict=True):
        others[row] = [(rows[one.row], one.probability) for one in found]
    return replace(library, others=others)
