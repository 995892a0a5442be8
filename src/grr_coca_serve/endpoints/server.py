"""Endpoints of the server itself: its capabilities, liveness and readiness, its metrics, and the cookie of its page."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

import grr_coca
from grr_coca_serve.guard import MAX_KEY_LENGTH, SESSION
from grr_coca_serve.request_error import RequestError
from grr_coca_serve.responses import json_response
from grr_coca_serve.schemas import Strict, answers
from grr_coca_serve.service import ThisService

router = APIRouter()


class InfoAnswer(BaseModel):
    """Description of the server. `pictures` is the number of images in the index, or null if the server has no index.

    `title` is the name of the index without its suffix, or empty without an index. `engine` is the engine and its
    precision. `revision` changes whenever the index changes. `can` lists the capabilities of the server.
    """

    title: str
    pictures: int | None
    model: str
    engine: str
    version: str
    revision: str
    can: list[Literal["search", "caption", "tags", "explain"]]


class StatusAnswer(BaseModel):
    """State of the server. `warnings` lists limitations of a server that is nevertheless ready."""

    status: str
    model: str | None = None
    max_batch: int | None = None
    warnings: list[str] = []


class SessionInput(Strict):
    """Key of the server."""

    key: Annotated[str, Field(max_length=MAX_KEY_LENGTH)]


@router.get("/info", responses=answers(InfoAnswer))
async def info(service: ThisService) -> Response:
    """Return the description and capabilities of this server."""
    model = service.queue.ready()
    engine = model.engine
    can = {
        "search": service.index is not None,
        "caption": True,
        "tags": model.has_tags,
        "explain": service.explainer.is_installed,
    }
    count, revision = (None, "") if service.index is None else await service.run_in_thread(service.index.state)
    return json_response(
        {
            "title": service.title,
            "pictures": count,
            "model": service.model_name,
            "engine": f"{engine.name} {getattr(engine, 'precision', 'fp32')}",
            "version": grr_coca.__version__,
            "revision": revision,
            "can": [name for name, is_possible in can.items() if is_possible],
        }
    )


@router.get("/health", responses=answers(StatusAnswer))
async def health() -> Response:
    """Report that the process is alive."""
    return json_response({"status": "ok"})


@router.get("/ready", responses=answers(StatusAnswer))
async def ready(service: ThisService) -> Response:
    """Report whether the server can answer requests: the model is loaded, and the index is readable.

    `warnings` lists limitations.
    """
    service.queue.ready()
    warnings = []
    if service.index is not None:
        await service.run_in_thread(service.index.state)
        if late := service.index.files.num_stalled:
            are_stalled = "image file is stalled" if late == 1 else "image files are stalled"
            warnings.append(f"{late} {are_stalled}; the drive may be unavailable")
    ready = {"status": "ready", "model": service.model_name, "max_batch": service.queue.max_batch}
    return json_response({**ready, "warnings": warnings})


@router.get("/metrics", response_class=PlainTextResponse, responses=answers(None))
async def metrics(service: ThisService) -> Response:
    """Return the metrics for Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post("/session", status_code=204, responses=answers(None, 422, success=204))
async def session(given: SessionInput, request: Request, service: ThisService) -> Response:
    """Exchange the key for a cookie, which the page needs because browsers request its images without the key.

    If the server does not require a key, no cookie is set.
    """
    if service.key is None:
        return Response(status_code=204)
    if not service.key.matches(given.key):
        raise RequestError(401, "the key is wrong; send the key of the server")
    response = Response(status_code=204)
    is_https = request.url.scheme == "https"
    response.set_cookie(SESSION, service.key.session, httponly=True, samesite="strict", secure=is_https)
    return response
