"""`POST /search` and `/similar`: find images in the index."""

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
from grr_coca_serve.served_index import parse_image_id
from grr_coca_serve.service import Place, QueuedRoute, ThisService, deadline_of

router = APIRouter(route_class=QueuedRoute)


class SearchInput(Strict):
    """Query, and range of the hits to return. `like` and `unlike` are ids of images in the index."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["red fruit"], "where": "width >= 16", "limit": 2}]}
    )

    texts: Annotated[list[Words], Field(max_length=16, fail_fast=True)] = []
    without: Annotated[list[Words], Field(max_length=16, fail_fast=True)] = []
    weights: Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(max_length=16, fail_fast=True)] = []
    like: Annotated[list[Text], Field(max_length=16, fail_fast=True)] = []
    unlike: Annotated[list[Text], Field(max_length=16, fail_fast=True)] = []
    image: Annotated[str | None, Field(description="an image, as `data:image/…;base64,…`")] = None
    where: Where = None
    offset: Offset = 0
    limit: Limit = 60
    svg: Annotated[bool, Field(description="include the cleaned sources of small SVG files")] = False


class SimilarOptions(Strict):
    """Filter and range of the hits to return. `id` identifies an image of the index, instead of one in the body."""

    id: Text | None = None
    where: Where = None
    offset: Offset = 0
    limit: Limit = 20


class FoundPicture(IndexedPicture):
    """Hit of a search.

    `score` is the cosine similarity to the query. `relevance` is the probability that the hit is correct, or null if
    this is unavailable. `copies` are the near-duplicates of the hit.
    """

    score: float
    relevance: float | None
    copies: list[IndexedPicture]


class SearchAnswer(BaseModel):
    """Hits of a search, best first.

    `more` states whether the query has more hits, and `searched` is the number of images in the index. `verdict` is
    `likely` if hits match the query, `unsure` if this is uncertain, and `nothing` if no hit matches. `num_likely` is
    the number of hits up to the last likely one. `can_tell` states whether relevances are available. `facets` has the
    values of text fields among the `counted` nearest images; it is empty if `offset` is above 0. `unknown` lists the
    texts in which an adapted model does not know any word.
    """

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
    """Find images of the index by texts, by an image, and by images of the index."""
    index, expires = service.require_index(), deadline_of(request)
    place.take()
    images = () if given.image is None else (await service.square(from_data_uri(given.image, "image")),)
    query = SearchQuery(
        texts=tuple(given.texts),
        images=images,
        without=tuple(given.without),
        weights=tuple(given.weights),
        like=tuple(map(parse_image_id, given.like)),
        unlike=tuple(map(parse_image_id, given.unlike)),
    )
    page = {"where": given.where, "offset": given.offset, "limit": given.limit, "svg": given.svg}
    return json_response(await service.run_in_thread(index.search, query, **page, expires=expires))


@router.post(
    "/similar",
    responses=answers(SearchAnswer, 404, 415, 422),
    openapi_extra=picture_request(SimilarOptions, {"limit": 2}),
)
async def similar(request: Request, service: ThisService, place: Place) -> Response:
    """Find images in the index that are similar to the image in the body, or to the image of the index with the given
    `id`.
    """
    data, options = await picture_and_options(request, SimilarOptions)
    index, expires = service.require_index(), deadline_of(request)
    place.take()
    if options.id is not None:
        query = SearchQuery(like=(parse_image_id(options.id),))
    else:
        query = SearchQuery(images=(await service.square(data),))
    page = options.model_dump(exclude={"id"})
    return json_response(await service.run_in_thread(index.search, query, **page, expires=expires))
