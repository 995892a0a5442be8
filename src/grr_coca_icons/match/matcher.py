"""End-to-end matching, shared by the command line, the server and the Python API.

`Matcher` holds a model, opens the image sets that a user's arguments name, and matches them.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from grr_coca.common.errors import UserError
from grr_coca.model.checkpoint_files import DEFAULT, require_not_adapted
from grr_coca_icons.match.candidates import PictureMatch, PictureSet, match_pictures
from grr_coca_icons.match.icon_map import IconMap, decided_matches
from grr_coca_icons.match.match_numbers import CANDIDATES, MatchParameters, MatchWeights, match_numbers
from grr_coca_icons.match.picture_set import OnProgress, OpenPictureSet, read_file, read_index, read_sources
from grr_coca_icons.match.used_icons import Use
from grr_coca_icons.sources.iconify import SCHEME
from grr_coca_search.entry import Entry
from grr_coca_search.index import Index, IndexModel
from grr_coca_search.store import Store, is_index, open_store


class UsedIcons(NamedTuple):
    """Icons that some code uses.

    Attributes:
        icons: All icons of the sets that the code uses.
        uses: Uses of each used icon, by its row in `icons`.
        unknown: Uses of names that the sets do not have.
    """

    icons: OpenPictureSet
    uses: dict[int, list[Use]]
    unknown: list[Use]


class Matcher:
    """Matcher of image sets, with one model.

    Args:
        model: The model, or its name or folder. If None, the model of the index that is opened first or, if the model
            is needed before any index is opened, the default model.
        engine: See `grr_coca.load`.
        names: Whether to compare names as well as images.
    """

    def __init__(self, model: IndexModel | str | None = None, engine: str = "auto", *, names: bool = True) -> None:
        self._engine, self._names = engine, names
        self._model = IndexModel(model, engine=engine) if isinstance(model, str) else model

    @property
    def model(self) -> IndexModel:
        """Model that embeds images and names."""
        if self._model is None:
            self._model = IndexModel(DEFAULT, engine=self._engine)
        return self._model

    @cached_property
    def parameters(self) -> MatchParameters | None:
        """Match parameters of the model. None if the model has no such parameters.

        Raises:
            UserError: If the model was adapted to a domain, because its vectors then represent the terms of this
                domain.
        """
        require_not_adapted(self.model.folder, "match")
        return match_numbers(self.model.folder)

    def numbers(self, source: PictureSet, target: PictureSet) -> MatchWeights | None:
        """Return the parameters for two image sets: with names if both have names and names are compared, else without.

        None if the model has no match parameters.
        """
        if self.parameters is None:
            return None
        uses_names = self._names and source.has_names and target.has_names
        return self.parameters.with_names if uses_names else self.parameters.without_names

    def open(
        self,
        arguments: Sequence[str],
        *,
        exclude: Sequence[str] = (),
        retired: bool = False,
        on_progress: OnProgress = lambda *_: None,
    ) -> OpenPictureSet:
        """Open icon sets, files and folders, or one index.

        Args:
            arguments: Icon sets, files and folders, or one index.
            exclude: Patterns of files to skip, as in .gitignore.
            retired: Whether to also open icons that a set has dropped. Code may use them, but they should not be
                replacements.
            on_progress: Function that is called after each batch, see `OnProgress`.

        Raises:
            UserError: If an argument does not exist or has no image, an index is combined with other arguments, the
                index belongs to another model, or the model was adapted to a domain.
        """
        indexes = [argument for argument in arguments if is_index(argument)]
        if not indexes:
            return read_sources(
                arguments, self.model, self.parameters, exclude=exclude, retired=retired, on_progress=on_progress
            )
        if len(arguments) > 1:
            raise UserError(
                f"{indexes[0]}: an index cannot be combined with other arguments; pass one index, or sources"
            )
        with open_store(indexes[0]) as store:
            return self.open_store(store)

    def open_store(self, store: Store, read: Callable[[Entry], bytes] = read_file) -> OpenPictureSet:
        """Open an index. Its images are read by calling `read`.

        Raises:
            UserError: If the index belongs to another model or has no images, or the model was adapted to a domain.
        """
        if self._model is None:
            self._model = IndexModel(store.header.model, engine=self._engine)
        self.model.require(store.header, store.location)
        return read_index(store, self.model, self.parameters, read)

    def used(self, uses: Sequence[Use], on_progress: OnProgress = lambda *_: None) -> UsedIcons:
        """Look up icon uses that were found in code. Sets that are not in the user's cache are downloaded.

        Raises:
            UserError: If `uses` is empty, or a set is unavailable.
        """
        if not uses:
            raise UserError("the code uses no icon of a known set; to match an entire set, omit --used-in")
        prefixes = list(dict.fromkeys(use.prefix for use in uses))
        icons = self.open([f"{SCHEME}{prefix}" for prefix in prefixes], retired=True, on_progress=on_progress)
        found: dict[int, list[Use]] = defaultdict(list)
        unknown: list[Use] = []
        for use in uses:
            known = icons.lookup.find(f"{use.prefix}:{use.name}")
            if known is None:
                unknown.append(use)
            else:
                found[known].append(use)
        return UsedIcons(icons, dict(sorted(found.items())), unknown)

    def match(
        self,
        source: OpenPictureSet,
        target: OpenPictureSet,
        *,
        n: int = CANDIDATES,
        rows: Sequence[int] | None = None,
        decided: "Mapping[str, str | None] | None" = None,
        where: str = "",
    ) -> list[PictureMatch]:
        """Match an image set with another.

        Args:
            source: All source images.
            target: Images to search for candidates.
            n: Maximum number of candidates per image.
            rows: Rows of the source images to match. None means all.
            decided: A map whose entries are used without comparison. None means no map.
            where: File of the map, for messages.

        Returns:
            A match for each requested image, in the order of `rows`.

        Raises:
            UserError: If the map belongs to other sets or has an unknown equivalent, or `match_pictures` fails.
        """
        requested = list(range(len(source.set))) if rows is None else list(rows)
        known: dict[int, PictureMatch] = {}
        if decided is not None:
            known = decided_matches(IconMap(decided), source.lookup, target.lookup, where)
        rest = [row for row in requested if row not in known]
        numbers = self.numbers(source.set, target.set)
        found: dict[int, PictureMatch] = {}
        if rest:
            found = {match.row: match for match in match_pictures(source.set, target.set, numbers, n=n, rows=rest)}
        return [known.get(row) or found[row] for row in requested]


def match_index(
    index: Index, other: Index | str | Path | Sequence[str | Path], *, n: int = CANDIDATES, names: bool = True
) -> list[PictureMatch]:
    """Match the images of an index with those of another library; see `Index.match`."""
    matcher = Matcher(index.model, names=names)
    source = matcher.open_store(index.store)
    if isinstance(other, Index):
        target = matcher.open_store(other.store)
    else:
        target = matcher.open([str(other)] if isinstance(other, str | Path) else list(map(str, other)))
    return matcher.match(source, target, n=n)
