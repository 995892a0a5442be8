"""Forgets pictures by where they lie, whether anything is there any more or not."""

from collections.abc import Iterator, Sequence

from grr_coca.errors import UserError
from grr_coca.search.store import Changes, Store
from grr_coca.search.updating.update import absolute_arguments, is_below
from grr_coca.search.words import pieces


def forget_arguments(store: Store, arguments: Sequence[str]) -> int:
    """Remove what some arguments brought, and what lies below them; returns the number of pictures.

    Raises:
        UserError: the store holds nothing of one of them, and nothing is removed; or another process writes.
    """
    places = absolute_arguments(arguments)
    for place in places:
        if next(_names_at(store, place), None) is None:
            made_of = ", ".join(store.roots()[:8]) or "nothing"
            raise UserError(f"{place}: the index holds nothing of it; it is made of {made_of}")
    before = len(store)
    for place in places:
        for names in pieces(_names_at(store, place), 1000):
            store.commit(Changes(removed=names))
    store.compact()
    return before - len(store)


def _names_at(store: Store, place: str) -> Iterator[str]:
    for root in store.roots():
        is_whole = root == place or is_below(root, {place})
        for name, file in store.places(root):
            if is_whole or file == place or is_below(file, {place}):
                yield name
