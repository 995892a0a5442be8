"""Application of the server: endpoints, the page, and the OpenAPI document, behind the guard."""

from collections.abc import Callable, Sequence

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.staticfiles import StaticFiles

import grr_coca
from grr_coca.common.errors import UserError, suggest_name
from grr_coca.common.plugins import others, own
from grr_coca_serve.endpoints import all_routers
from grr_coca_serve.guard import Guard
from grr_coca_serve.page import FILES, POLICY
from grr_coca_serve.pictures import validation_error
from grr_coca_serve.request_error import RequestError, to_request_error
from grr_coca_serve.responses import error_response
from grr_coca_serve.service import QueuedRoute, Service

_PATHS = frozenset({"/", *(f"/{path.relative_to(FILES).as_posix()}" for path in FILES.rglob("*") if path.is_file())})
"""Paths of the page's files, which clients can request without a key."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


Endpoints = Callable[[Service], Sequence[BaseRoute]]
"""Type of the entry points of `grr_coca.endpoints`: a function that returns additional routes of a server."""


def make_app(service: Service, *, is_local: bool, plugins: Sequence[str] = ()) -> Guard:
    """Create the ASGI application of a server.

    Args:
        service: Shared state of the endpoints.
        is_local: Whether only this machine can reach the server; see `Guard`.
        plugins: Names of entry points in the group `grr_coca.endpoints` of other distributions. Such an entry point
            adds routes only if it is listed here.

    Raises:
        UserError: If no installed distribution has a plug-in of a given name.
    """
    # FastAPI's own /docs and /redoc are disabled, because they load scripts from other hosts.
    app = FastAPI(title="GRR-CoCa", version=grr_coca.__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    routes = [route for router in all_routers() for route in router.routes]
    for endpoints in _additional_endpoints(plugins):
        routes += endpoints(service)
    app.router.routes.extend(routes)
    page = _Page(directory=FILES)
    for path in _PATHS:
        app.add_route(path, page.answer, include_in_schema=False)
    for kind in (Exception, HTTPException, RequestValidationError, RequestError, UserError, MemoryError):
        app.add_exception_handler(kind, _handle_error)
    return Guard(
        app,
        limits=service.limits,
        metrics=service.metrics,
        key=service.key,
        page=_PATHS,
        queued_paths=frozenset(route.path for route in routes if isinstance(route, QueuedRoute)),
        require_capacity=service.queue.require_capacity,
        is_local=is_local,
    )


def _additional_endpoints(names: Sequence[str]) -> list[Endpoints]:
    """Return the additional endpoints of this distribution, and those of other distributions that `names` lists.

    An unknown name raises a `UserError`.
    """
    found = list(own("grr_coca.endpoints").values())
    for name in names:
        known = others("grr_coca.endpoints")
        if name not in known:
            raise UserError(
                f"--plugin {name}: no installed package has endpoints with this name; {suggest_name(name, known)}"
            )
        found.append(known[name])
    return found


async def _handle_error(request: Request, error: Exception) -> Response:
    return error_response(_to_request_error(request, error))


def _to_request_error(request: Request, error: Exception) -> RequestError:
    if isinstance(error, RequestValidationError):
        invalid = validation_error(error)
        if request.url.path.startswith("/v1/"):  # the form that OpenAI clients expect
            return RequestError(400, invalid.message, param=invalid.param)
        return invalid
    if isinstance(error, HTTPException):
        messages = {
            404: f"unknown path {request.method} {request.url.path[:200]}; /openapi.json lists all paths",
            405: f"{request.url.path[:200]} does not accept {request.method}; /openapi.json lists the methods",
        }
        return RequestError(error.status_code, messages.get(error.status_code, str(error.detail)))
    return to_request_error(error)


class _Page(StaticFiles):
    """Files of the page, which may load content only from this server."""

    async def answer(self, request: Request) -> Response:
        """Return a static file, with the response headers of the page."""
        name = request.url.path.lstrip("/") or "index.html"
        response = await self.get_response(name, request.scope)
        response.headers.update(_HEADERS)
        return response
