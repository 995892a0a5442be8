"""Responses of endpoints."""

from collections.abc import AsyncIterator

from fastapi import Response
from fastapi.responses import StreamingResponse

from grr_coca_serve.request_error import RequestError, json_bytes


def json_response(content: object) -> Response:
    """Create a JSON response with status 200."""
    return Response(json_bytes(content), media_type="application/json")


def error_response(error: RequestError) -> Response:
    """Create the JSON response for an error, with its status and headers."""
    return Response(json_bytes(error.content), error.status, error.headers, "application/json")


def event_stream(events: AsyncIterator[bytes]) -> Response:
    """Create a response of server-sent events, which proxies do not buffer."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
