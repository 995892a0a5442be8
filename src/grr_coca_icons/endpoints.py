"""Additional endpoints for the server of an icon index: equivalents in other sets, and tools for agents."""

from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.routing import BaseRoute, Route

from grr_coca_icons.match.match_numbers import MatchParameters, match_numbers
from grr_coca_icons.match.other_sets import CrossSetMatcher
from grr_coca_icons.match.picture_set import make_picture_set
from grr_coca_icons.tools.mcp_http import McpEndpoint
from grr_coca_search.store import Store
from grr_coca_serve.lru_cache import LruCache
from grr_coca_serve.responses import json_response
from grr_coca_serve.schemas import IndexedPicture, answers
from grr_coca_serve.served_index import ServedIndex, parse_image_id, picture
from grr_coca_serve.service import Service


class OtherPicture(IndexedPicture):
    """Icon of another set that may be the equivalent of a requested icon, with the probability that it is."""

    probability: float


class OthersAnswer(BaseModel):
    """Equivalents of an icon in the other icon sets of the index."""

    others: list[OtherPicture]


def endpoints(service: Service) -> list[BaseRoute]:
    """Return the routes that this package adds to a server, for the entry point group `grr_coca.endpoints`."""
    router = APIRouter()
    finder = None if service.index is None else Equivalents(service.index)

    @router.get("/picture/{identity}/others", responses=answers(OthersAnswer, 404, 422))
    async def others(identity: str) -> Response:
        """Return the equivalents of an icon in the other icon sets of the index, most likely first."""
        service.require_index()
        assert finder is not None
        return json_response({"others": await service.grouping.do(finder.find, identity)})

    return [*router.routes, Route("/mcp", McpEndpoint(service.index, service.queue), include_in_schema=False)]


class Equivalents:
    """Finder of an icon's equivalents in the other icon sets of a served index. Not thread-safe.

    Args:
        index: The served index.
    """

    def __init__(self, index: ServedIndex) -> None:
        self._index = index
        self._numbers = match_numbers(index.model_folder)
        self._sets = LruCache[str, tuple[list[int], CrossSetMatcher]](1)

    def find(self, identity: str) -> list[dict[str, Any]]:
        """Return the equivalents of an icon as JSON objects in the form of `OtherPicture`, most likely first.

        The list is empty for images that are not icons, and if the model has no match parameters. The matcher is built
        at the first call, and again after each change of the index.

        Raises:
            RequestError: If the index has no image with this id.
        """
        if "icon" not in self._index.entry(identity).fields or self._numbers is None:
            return []
        with self._index.use() as store:
            draws, sets = self._sets.get_or_make(self._index.revision(store), partial(_icon_sets, store, self._numbers))
            found = sets.equivalents_of(draws.index(parse_image_id(identity)))
            ids = store.ids_of([draws[one.row] for one in found])
            entries = store.entries([ids[draws[one.row]] for one in found])
        there, drawings = self._index.files.files_exist(entries), self._index.files.drawings(entries)
        return [
            {**picture(entry, there, drawings), "probability": one.probability}
            for entry, one in zip(entries, found, strict=True)
        ]


def _icon_sets(store: Store, numbers: MatchParameters) -> tuple[list[int], CrossSetMatcher]:
    """Return the `Entry.name_hash` of each icon in an index, and a matcher for the sets of these icons."""
    icons = [(entry, vector) for entry, vector in store.everything() if "icon" in entry.fields]
    names, vectors = [str(entry.fields["icon"]) for entry, _ in icons], np.array([one for _, one in icons])
    pictures = make_picture_set(names, [()] * len(names), vectors, numbers)
    return [entry.name_hash for entry, _ in icons], CrossSetMatcher(pictures, numbers)
