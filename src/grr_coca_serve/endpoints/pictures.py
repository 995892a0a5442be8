"""Browse the index: lists of images, a single image and its file, facets, and duplicates."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from grr_coca.common.errors import UserError
from grr_coca_serve.request_error import RequestError, json_bytes, json_list
from grr_coca_serve.responses import json_response
from grr_coca_serve.schemas import MAX_LIMIT, Facet, IndexedPicture, Where, answers
from grr_coca_serve.service import ThisService
from grr_coca_serve.svg_cleaning import HEADERS, clean_svg

router = APIRouter()

_Skip = Annotated[int, Query(ge=0, lt=2**53)]
_Count = Annotated[int, Query(ge=1, le=MAX_LIMIT)]

_PRIVATE = {"Cache-Control": "no-store"}
_PLACEHOLDER = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 320" role="img" aria-label="gone">
<rect width="320" height="320" fill="#8882"/>
<path d="M104 120h112v80H104zm0 64 32-28 24 20 20-16 36 28M96 96l128 128" fill="none" stroke="#888" stroke-width="8"/>
</svg>"""


class PicturesAnswer(BaseModel):
    """Some of `total` images, newest first."""

    total: int
    pictures: list[IndexedPicture]


class FacetsAnswer(BaseModel):
    """Fields by which images can be filtered."""

    facets: list[Facet]


class GroupsAnswer(BaseModel):
    """Some of `total` groups of duplicate images: the size of each group, and its first 60 images."""

    total: int
    sizes: list[int]
    groups: list[list[IndexedPicture]]


@router.get("/pictures", responses=answers(PicturesAnswer, 404, 422))
async def pictures(
    service: ThisService, where: Where = None, offset: _Skip = 0, limit: _Count = 100, svg: bool = False
) -> Response:
    """Return the images of the index, newest first. `svg` includes the cleaned sources of small SVG files."""
    return json_response(await service.browsing.do(service.require_index().pictures, where, offset, limit, svg))


@router.get("/picture/{identity}", responses=answers(IndexedPicture, 404, 422))
async def one_picture(identity: str, service: ThisService) -> Response:
    """Return an image of the index by its id."""
    return json_response(await service.run_in_thread(service.require_index().picture, identity))


@router.get("/facets", responses=answers(FacetsAnswer, 404, 422))
async def facets(
    service: ThisService,
    where: Where = None,
    field: Annotated[list[str] | None, Query(max_length=MAX_LIMIT)] = None,
) -> Response:
    """Return the fields by which images can be filtered, with their values.

    With a filter, return the values of text fields, with the number of matching images for each.
    """
    index = service.require_index()
    if where is None:
        found = await service.counting.do(index.facets)
        selected = [one for one in found if field is None or one["field"] in field]
        return json_response({"facets": selected})
    return json_response({"facets": await service.counting.do(index.counts, where, tuple(field or ()))})


@router.get("/duplicates", responses=answers(GroupsAnswer, 404, 422))
async def duplicates(service: ThisService, offset: _Skip = 0, limit: _Count = 50) -> Response:
    """Return groups of duplicate images, the largest first."""
    index = service.require_index()

    def encoded() -> bytes:  # encodes one group at a time, because the answer may have thousands of images
        found = index.duplicates(offset, limit)
        return b'{"total":%d,"sizes":%b,"groups":%b}' % (
            found["total"],
            json_bytes(found["sizes"]),
            json_list(found["groups"]),
        )

    return Response(await service.grouping.do(encoded), media_type="application/json")


@router.get(
    "/image/{identity}",
    response_class=Response,
    responses=answers(None, 404, 422) | {200: {"content": {"image/webp": {}, "image/svg+xml": {}}}},
)
async def image(identity: str, service: ThisService, side: Annotated[int, Query(ge=64, le=1600)] = 320) -> Response:
    """Return a scaled-down image of the index, or a placeholder if its file is missing, unreadable or not shown."""
    index = service.require_index()
    content = await index.files.thumbnail(await service.run_in_thread(index.entry, identity), side)
    if content is None:
        return Response(_PLACEHOLDER, media_type="image/svg+xml", headers={**_PRIVATE, "X-Missing": "1"})
    return Response(content, media_type="image/webp", headers={"Cache-Control": "private, max-age=86400"})


@router.get(
    "/vector/{identity}",
    response_class=Response,
    responses=answers(None, 404, 422) | {200: {"content": {"image/svg+xml": {}, "image/webp": {}}}},
)
async def vector(
    identity: str, service: ThisService, ink: Annotated[str | None, Query(max_length=6)] = None
) -> Response:
    """Return an SVG file of the index without scripts and references.

    `ink` is the default color, such as `1b1b1a`. Other files, and SVG files that cannot be cleaned, are returned as
    pixels.
    """
    index = service.require_index()
    entry = await service.run_in_thread(index.entry, identity)
    content = None
    if entry.is_vector:
        with suppress(UserError, RequestError):  # the file is missing, or may not be shown
            content = await service.run_in_thread(clean_svg, await index.files.read(entry), ink)
    if content is None:
        return await image(identity, service, 320)
    cached = {"Cache-Control": "private, max-age=86400"}
    return Response(content, media_type="image/svg+xml", headers={**HEADERS, **cached})
