"""`POST /search` and `/similar`: hits in the index."""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from grr_coca_search.query import Query as SearchQuery
from grr_coca_search.query import Verdict
from grr_coca_serve.pictures import from_data_uri, picture_and_options
from grr_coca_serve.responses import json_response
from grr_coca_serve.schemas import (
    Facet,
    IndexedPicture,
    Limit,
    Offset,
    Strict,
    Text,
    Where,
    Words,
    answers,
    picture_request,
)
from grr_coca_serve.served_index import draw_of
from grr_coca_serve.service import Place, QueuedRoute, ThisService, deadline_of

router = APIRouter(route_class=QueuedRoute)


class SearchInput(Strict):
    """What pictures should show, and which hits to return. `like`, `unlike`: ids of pictures of the index."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["red fruit"], "where": "width >= 16", "limit": 2}]}
    )

    texts: Annotated[list[Words], Field(max_length=16, fail_fast=True)] = []
    without: Annotated[list[Words], Field(max_length=16, fail_fast=True)] = []
    weights: Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(max_length=16, fail_fast=True)] = []
    like: Annotated[list[Text], Field(max_length=16, fail_fast=True)] = []
    unlike: Annotated[list[Text], Field(max_length=16, fail_fast=True)] = []
    image: Annotated[str | None, Field(description="a picture, as `data:image/…;base64,…`")] = None
    where: Where = None
    offset: Offset = 0
    limit: Limit = 60
    svg: Annotated[bool, Field(description="with the sources of small SVG files, cleaned")] = False


class SimilarOptions(Strict):
    """Which hits to return. `id`: a picture of the index, instead of one in the body."""

    id: Text | None = None
    where: Where = None
    offset: Offset = 0
    limit: Limit = 20


class FoundPicture(IndexedPicture):
    """A hit. `score`: cosine with the query; `relevance`: probability that it is right, null if that cannot be told;
    `copies`: its near-duplicates."""

    score: float
    relevance: float | None
    copies: list[IndexedPicture]


class SearchAnswer(BaseModel):
    """Hits, the best first. `more`: there are further ones; `searched`: pictures of the index; `verdict`: whether
    hits look like what the query asked for (`likely`), or that is not sure (`unsure`), or none does (`nothing`);
    `num_likely`: hits of this answer up to the last likely one; `can_tell`: false if relevances cannot be told;
    `facets`: the values of texts among the nearest pictures, of which there are `counted`, in the first answer;
    `unknown`: texts of which an adapted model knows no word."""

    hits: list[FoundPicture]
    more: bool
    searched: int
    verdict: Verdict
    num_likely: int
    can_tell: bool
    facets: list[Facet]
    counted: int
    unknown: list[str]


@router.post("/search", responses=answers(SearchAnswer, 404, 415, 422))
async def search(given: SearchInput, request: Request, service: ThisService, place: Place) -> Response:
    """Find pictures of the index by texts, by a picture, and by pictures of the index."""
    index, expires = service.require_index(), deadline_of(request)
    place.take()
    images = () if given.image is None else (await service.square(from_data_uri(given.image, "image")),)
    query = SearchQuery(
        texts=tuple(given.texts),
        images=images,
        without=tuple(given.without),
        weights=tuple(given.weights),
        like=tuple(map(draw_of, given.like)),
        unlike=tuple(map(draw_of, given.unlike)),
    )
    page = {"where": given.where, "offset": given.offset, "limit": given.limit, "svg": given.svg}
    return json_response(await service.in_thread(index.search, query, **page, expires=expires))


@router.post(
    "/similar",
    responses=answers(SearchAnswer, 404, 415, 422),
    openapi_extra=picture_request(SimilarOptions, {"limit": 2}),
)
async def similar(request: Request, service: ThisService, place: Place) -> Response:
    """Pictures of the index that look like a picture: the body, or the one of the index with this `id`."""
    data, options = await picture_and_options(request, SimilarOptions)
    index, expires = service.require_index(), deadline_of(request)
    place.take()
    if options.id is not None:
        query = SearchQuery(like=(draw_of(options.id),))
    else:
        query = SearchQuery(images=(await service.square(data),))
    page = options.model_dump(exclude={"id"})
    return json_response(await service.in_thread(index.search, query, **page, expires=expires))
