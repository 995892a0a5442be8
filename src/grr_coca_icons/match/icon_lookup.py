"""Look up icons by the names that users and code use, with suggestions for unknown names.

`lucide:trash-2`, `trash-2`, `Trash2`, an alias, and the name of a component (`IconTrash` in tabler) all identify an
icon.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from grr_coca_icons.codemod.packages import Framework, package_for
from grr_coca_icons.icon_names import words_of_name
from grr_coca_icons.match.candidates import PictureSet
from grr_coca_icons.match.used_icons import normalize_name

Embed = Callable[[str], "np.ndarray | None"]
"""Function that returns the embedding (E) of a text, or None if the model does not know the text's words."""


class IconLookup:
    """Lookup of the icons of an image set by their names.

    Args:
        pictures: The icons.
        further: Aliases of each icon, without the prefix. Empty if no icon has aliases.
        embed: Function that embeds unknown names. If None, suggestions are based only on spelling.
    """

    def __init__(self, pictures: PictureSet, further: Sequence[Sequence[str]] = (), embed: Embed | None = None) -> None:
        self.pictures, self._embed = pictures, embed
        self.prefixes = list(dict.fromkeys(_prefix(name) for name in pictures.names))
        self._further = further or [()] * len(pictures)
        self._row_by_name = _rows_by_name(pictures.names, self._further)

    def find(self, name: str) -> int | None:
        """Return the row of an icon, or None if no icon has the name.

        Case and separators in the name do not matter. If the name has no prefix, the first set that has it is used.
        """
        exact = self.pictures.row_by_name.get(name)
        if exact is not None:
            return exact
        prefix, _, own = name.rpartition(":")
        return self._row_by_name.get((prefix, normalize_name(own)))

    def nearest(self, name: str, n: int = 1) -> list[str]:
        """Return the full names of at most `n` icons that an unknown name may refer to, best first.

        Icons with the same words in another order come first, then icons whose names differ by one typo. If the model
        knows the words, the icons whose names and images are closest to these words follow. If the name has the prefix
        of a set, only the icons of this set are compared. The result may be empty.
        """
        prefix, _, own = name[:200].rpartition(":")
        searched_prefixes = [prefix] if prefix in self.prefixes else self.prefixes
        found = dict.fromkeys(self._similar_icons(searched_prefixes, own))
        vector = self._embed(words_of_name(own)) if self._embed is not None and own.strip() else None
        if vector is not None and self.pictures.has_names:
            scores = (self.pictures.name_vectors + self.pictures.vectors) @ vector
            is_within = np.array([_prefix(one) in searched_prefixes for one in self.pictures.names])
            best = np.argsort(-np.where(is_within, scores, -np.inf), kind="stable")[: n + len(found)]
            found |= dict.fromkeys(int(row) for row in best)
        return [self.pictures.names[row] for row in found][:n]

    def _similar_icons(self, searched_prefixes: Sequence[str], own: str) -> list[int]:
        from rapidfuzz.distance import OSA  # lazy import, because it needs an extra

        short, words = normalize_name(own), sorted(words_of_name(own).split())
        if len(short) < 3:
            return []
        found = {
            row
            for (prefix, written), row in self._row_by_name.items()
            if prefix in searched_prefixes and OSA.distance(short, written, score_cutoff=1) <= 1
        }
        ordered = (
            row
            for row, name in enumerate(self.pictures.names)
            if _prefix(name) in searched_prefixes and sorted(words_of_name(_own(name)).split()) == words
        )
        return [*ordered, *sorted(found)]


def _rows_by_name(names: Sequence[str], further: Sequence[Sequence[str]]) -> Mapping[tuple[str, str], int]:
    """Return the row of each icon, by prefix and normalized name.

    Names have priority over aliases, and aliases over component names. An empty prefix refers to the first set that has
    the name.
    """
    rows: dict[tuple[str, str], int] = {}

    def add(prefix: str, written: str, row: int) -> None:
        rows.setdefault((prefix, normalize_name(written)), row)

    for row, name in enumerate(names):
        add(_prefix(name), _own(name), row)
    for row, (name, aliases) in enumerate(zip(names, further, strict=True)):
        for alias in aliases:
            add(_prefix(name), alias, row)
    frameworks: tuple[Framework, ...] = ("react", "vue")
    for row, name in enumerate(names):
        for framework in frameworks:
            package = package_for(_prefix(name), framework)
            component = package.component(_prefix(name), _own(name)) if package is not None else None
            if component is not None and not component.properties:
                add(_prefix(name), component.name, row)
    for (prefix, written), row in list(rows.items()):
        if prefix:
            add("", written, row)
    return rows


def _prefix(name: str) -> str:
    return name.partition(":")[0]


def _own(name: str) -> str:
    return name.partition(":")[2]
