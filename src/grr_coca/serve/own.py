"""The endpoints of grr-coca itself: `/caption`, `/embed`, `/classify`, `/search` and what the page asks for."""

from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca.infer.image_text_model import Description
from grr_coca.search.answer import Query as SearchQuery
from grr_coca.serve.guard import SESSION
from grr_coca.serve.library import draw_of
from grr_coca.serve.pictures import from_data_uri, is_picture, picture_and_options
from grr_coca.serve.queue import begun, caption_pieces, result_of, results_of
from grr_coca.serve.refusal import Refusal, json_bytes, json_list, refusal_of, server_sent
from grr_coca.serve.schemas import (
    MAX_LIMIT,
    CaptionAnswer,
    CaptionOptions,
    EmbedInput,
    ExplainAnswer,
    ExplainOptions,
    FacetsAnswer,
    GroupsAnswer,
    IndexedPicture,
    InfoAnswer,
    LabelAnswer,
    LabelOptions,
    PicturesAnswer,
    SearchAnswer,
    SearchInput,
    SessionInput,
    SimilarOptions,
    StatusAnswer,
    Where,
    answers,
    picture_request,
)
from grr_coca.serve.service import Service, deadline_of
from grr_coca.serve.vectors import HEADERS, clean_svg


def own_endpoints(service: Service) -> APIRouter:
    """The endpoints, for one server."""
    router = APIRouter()
    queue = service.queue

    @router.post(
        "/caption",
        responses=answers(CaptionAnswer, 415, 422, streams=True),
        openapi_extra=picture_request(CaptionOptions, {"num_beams": 2, "num_captions": 2}),
    )
    async def caption(request: Request) -> Response:
        """Caption a picture; word by word if the client accepts `text/event-stream`."""
        data, options = await picture_and_options(request, CaptionOptions)
        generation, expires = options.generation(), deadline_of(request)
        service.admit(request)
        pixels = await service.square(data)
        if "text/event-stream" not in request.headers.get("accept", ""):
            found: Description = await result_of(queue.caption(pixels, expires, options.prompt, generation))
            captions = [{"text": one.text, "log_prob": float(np.sum(one.log_probs))} for one in found.captions]
            certainty = {"confidence": found.confidence, "unfamiliar": found.unfamiliar}
            answer = {"caption": captions[0]["text"], "captions": captions, **certainty, "model": service.model_name}
            return json_response(answer)
        pieces = caption_pieces(partial(queue.caption, pixels, expires, options.prompt, generation))
        return event_stream(_caption_events(await begun(pieces)))

    @router.post("/embed", responses=answers(list[list[float]], 415, 422))
    async def embed(given: EmbedInput, request: Request) -> Response:
        """Embed texts, and pictures as data URIs: a list of vectors of unit length."""
        inputs = [given.inputs] if isinstance(given.inputs, str) else given.inputs
        decoded = [from_data_uri(one, "inputs") if is_picture(one) else one for one in inputs]
        service.admit(request, sum(isinstance(one, bytes) for one in decoded))
        vectors = await service.embedded(decoded, deadline_of(request))
        content = await service.in_thread(lambda: json_list(row.tolist() for row in vectors))  # megabytes
        return Response(content, media_type="application/json")

    @router.post(
        "/classify",
        responses=answers(LabelAnswer, 415, 422),
        openapi_extra=picture_request(LabelOptions, {"labels": ["heart", "star"]}),
    )
    async def classify(request: Request) -> Response:
        """The labels that fit a picture best, with probabilities. Any labels work (zero-shot)."""
        data, options = await picture_and_options(request, LabelOptions)
        expires = deadline_of(request)
        service.admit(request)
        pixels = await service.square(data)
        classifier = await service.classifier(options.labels, options.templates, expires)
        (row,) = await results_of(queue.embed_images([pixels], expires))
        (ranked,) = queue.ready().rank_labels(classifier, row[None])
        best = [{"label": label, "probability": share} for label, share in ranked[: options.top]]
        return json_response({"labels": best, "model": service.model_name})

    @router.post(
        "/explain",
        responses=answers(ExplainAnswer, 404, 415, 422, 501),
        openapi_extra=picture_request(ExplainOptions, {}),
    )
    async def explain(request: Request) -> Response:
        """A caption, and for each of its words a map of where the model looks. The maps lie over `square`."""
        data, options = await picture_and_options(request, ExplainOptions)
        service.explainer.require()
        if options.id is not None:
            index = service.index()
            data = await index.files.read(await service.in_thread(index.entry, options.id))
        await service.square(data)  # says what is wrong with the picture
        return json_response(await service.explainer.explain(data))

    # --- The index

    @router.post("/search", responses=answers(SearchAnswer, 404, 415, 422))
    async def search(given: SearchInput, request: Request) -> Response:
        """Find pictures of the index by texts, by a picture, and by pictures of the index."""
        index, expires = service.index(), deadline_of(request)
        service.admit(request)
        images = () if given.image is None else (await service.square(from_data_uri(given.image, "image")),)
        query = SearchQuery(
            texts=tuple(given.texts),
            images=images,
            without=tuple(given.without),
            weights=tuple(given.weights),
            like=tuple(map(draw_of, given.like)),
            unlike=tuple(map(draw_of, given.unlike)),
        )
        page = {"where": given.where, "offset": given.offset, "limit": given.limit}
        return json_response(await service.in_thread(index.search, query, **page, expires=expires))

    @router.post(
        "/similar",
        responses=answers(SearchAnswer, 404, 415, 422),
        openapi_extra=picture_request(SimilarOptions, {"limit": 2}),
    )
    async def similar(request: Request) -> Response:
        """Pictures of the index that look like a picture: the body, or the one of the index with this `id`."""
        data, options = await picture_and_options(request, SimilarOptions)
        index, expires = service.index(), deadline_of(request)
        service.admit(request)
        if options.id is not None:
            query = SearchQuery(like=(draw_of(options.id),))
        else:
            query = SearchQuery(images=(await service.square(data),))
        page = options.model_dump(exclude={"id"})
        return json_response(await service.in_thread(index.search, query, **page, expires=expires))

    @router.get("/pictures", responses=answers(PicturesAnswer, 404, 422))
    async def pictures(
        where: Where = None,
        offset: Annotated[int, Query(ge=0, lt=2**53)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 100,
    ) -> Response:
        """The pictures of the index, the newest first."""
        return json_response(await service.browsing.do(service.index().pictures, where, offset, limit))

    @router.get("/picture/{identity}", responses=answers(IndexedPicture, 404, 422))
    async def one_picture(identity: str) -> Response:
        """A picture of the index, by its id."""
        return json_response(await service.in_thread(service.index().picture, identity))

    @router.get("/facets", responses=answers(FacetsAnswer, 404, 422))
    async def facets(
        where: Where = None, field: Annotated[list[str] | None, Query(max_length=MAX_LIMIT)] = None
    ) -> Response:
        """The fields by which pictures can be filtered, with their values. With a filter: the texts of what it selects,
        with the number of pictures of each."""
        index = service.index()
        if where is None:
            found = await service.counting.do(index.facets)
            wanted = [one for one in found if field is None or one["field"] in field]
            return json_response({"facets": wanted})
        return json_response({"facets": await service.counting.do(index.counts, where, tuple(field or ()))})

    @router.get("/duplicates", responses=answers(GroupsAnswer, 404, 422))
    async def duplicates(
        offset: Annotated[int, Query(ge=0, lt=2**53)] = 0, limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50
    ) -> Response:
        """Groups of pictures that look the same, the largest group first."""
        return json_response(await service.grouping.do(service.index().duplicates, offset, limit))

    @router.get(
        "/image/{identity}",
        response_class=Response,
        responses=answers(None, 404, 422) | {200: {"content": {"image/webp": {}, "image/svg+xml": {}}}},
    )
    async def image(identity: str, side: Annotated[int, Query(ge=64, le=1600)] = 320) -> Response:
        """A picture of the index, scaled down. A placeholder if its file is gone."""
        index = service.index()
        content = await index.files.thumbnail(await service.in_thread(index.entry, identity), side)
        if content is None:
            return Response(_PLACEHOLDER, media_type="image/svg+xml", headers={**_PRIVATE, "X-Missing": "1"})
        return Response(content, media_type="image/webp", headers={"Cache-Control": "private, max-age=86400"})

    @router.get(
        "/vector/{identity}",
        response_class=Response,
        responses=answers(None, 404, 422) | {200: {"content": {"image/svg+xml": {}, "image/webp": {}}}},
    )
    async def vector(identity: str, ink: Annotated[str | None, Query(max_length=6)] = None) -> Response:
        """An SVG file of the index, without scripts and references; `ink`: the colour of what has none, as `1b1b1a`. Of
        other files, and of those that cannot be cleaned, a picture."""
        index = service.index()
        entry = await service.in_thread(index.entry, identity)
        content = None
        if entry.is_vector:
            with suppress(UserError, Refusal):  # the file is gone, or may not be shown
                content = await service.in_thread(clean_svg, await index.files.read(entry), ink)
        if content is None:
            return await image(identity, 320)
        cached = {"Cache-Control": "private, max-age=86400"}
        return Response(content, media_type="image/svg+xml", headers={**HEADERS, **cached})

    # --- The server

    @router.get("/info", responses=answers(InfoAnswer))
    async def info() -> Response:
        """What this server is, and what it can do."""
        engine = queue.ready().engine
        can = ["caption"] if service.library is None else ["search", "caption"]
        count, revision = (None, "") if service.library is None else await service.in_thread(service.library.state)
        return json_response(
            {
                "title": service.title,
                "pictures": count,
                "model": service.model_name,
                "engine": f"{engine.name} {getattr(engine, 'precision', 'fp32')}",
                "version": grr_coca.__version__,
                "revision": revision,
                "can": [*can, "explain"] if service.explainer.is_installed else can,
            }
        )

    @router.get("/health", responses=answers(StatusAnswer))
    async def health() -> Response:
        """The process is alive."""
        return json_response({"status": "ok"})

    @router.get("/ready", responses=answers(StatusAnswer))
    async def ready() -> Response:
        """The server can answer: the model is loaded, and the index can be read. `warnings`: what it cannot do."""
        queue.ready()
        if service.reader.hangs:
            raise Refusal(503, "pictures are not decoded any more: all threads for it are busy", retry_after=5)
        warnings = []
        if service.library is not None:
            await service.in_thread(service.library.state)
            if late := service.library.files.num_late:
                warnings.append(f"{late} files of pictures do not answer; their drive may hang")
        ready = {"status": "ready", "model": service.model_name, "max_batch": queue.max_batch}
        return json_response({**ready, "warnings": warnings})

    @router.get("/metrics", response_class=PlainTextResponse, responses=answers(None))
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.post("/session", status_code=204, responses=answers(None, 422, success=204))
    async def session(given: SessionInput, request: Request) -> Response:
        """Exchange the key for a cookie, for pages: images of a page send no header."""
        if service.key is None:
            return Response(status_code=204)
        if not service.key.opens(given.key):
            raise Refusal(401, "this is not the key of the server")
        response = Response(status_code=204)
        is_https = request.url.scheme == "https"
        response.set_cookie(SESSION, service.key.session, httponly=True, samesite="strict", secure=is_https)
        return response

    return router


_PRIVATE = {"Cache-Control": "no-store"}
_PLACEHOLDER = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 320" role="img" aria-label="gone">
<rect width="320" height="320" fill="#8882"/>
<path d="M104 120h112v80H104zm0 64 32-28 24 20 20-16 36 28M96 96l128 128" fill="none" stroke="#888" stroke-width="8"/>
</svg>"""


def json_response(content: object) -> Response:
    """A response with JSON."""
    return Response(json_bytes(content), media_type="application/json")


def event_stream(events: AsyncIterator[bytes]) -> Response:
    """A response of server-sent events, which no proxy holds back."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _caption_events(pieces: AsyncIterator[str | Description]) -> AsyncIterator[bytes]:
    """The events of a caption: its text so far after each token, and at last the whole text, or an error."""
    text = ""
    try:
        async for piece in pieces:
            if isinstance(piece, str):
                text += piece
                yield server_sent({"text": text})
            else:
                certainty = {"confidence": piece.confidence, "unfamiliar": piece.unfamiliar}
                yield server_sent({"text": piece.captions[0].text, **certainty}, "done")
    except Exception as error:
        yield server_sent(refusal_of(error).content, "error")
