"""Error responses in JSON, with a status and a sentence for users."""

import json
import logging
from collections.abc import Iterable
from http import HTTPStatus

from grr_coca.common.errors import UserError
from grr_coca.data.sources.base import BadSample, Cause

log = logging.getLogger(__name__)

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    501: "not_installed_error",
    503: "unavailable_error",
    504: "timeout_error",
}
"""Error types of the OpenAI API, by status. All other statuses below 500 have the type `invalid_request_error`."""


MAX_BYTES = 2048
"""Maximum size, in bytes, of the JSON of an error. Without a limit, a message that quotes a request might have many
megabytes."""


class RequestError(Exception):
    """Error response to a request.

    Args:
        status: HTTP status.
        message: Sentence for users. Long messages are truncated.
        param: Invalid key of the request. Long keys are truncated.
        retry_after: Seconds after which another attempt may succeed.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        self.message = _cut(message, MAX_BYTES - 512)
        super().__init__(self.message)
        self.status = status
        self.param = None if param is None else _cut(param, 256)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response: when to try again, and how to authenticate."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else {})

    @property
    def content(self) -> dict[str, object]:
        """Content of the response, in the JSON format of the OpenAI API."""
        other = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        kind = _KINDS.get(self.status, other)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}


def _cut(text: str, max_bytes: int) -> str:
    """Return a text, truncated and followed by `…` if it needs more than about `max_bytes` bytes in JSON."""
    cut = text[:max_bytes]
    while len(json_bytes(cut)) > max_bytes:
        cut = cut[: len(cut) * 3 // 4]
    return cut if len(cut) == len(text) else f"{cut}…"


def to_request_error(error: Exception) -> RequestError:
    """Convert an exception to an error response.

    An invalid image gets status 413 or 415, and another `UserError` 422. Status 503 means that the server lacked memory
    or time. Any other error is internal: it is logged, and the response, with status 500, does not contain its details.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, BadSample):
        if error.cause is Cause.UNREADABLE:  # the server did not have enough time for a drawing
            return RequestError(503, str(error), retry_after=5)
        return RequestError(413 if error.cause is Cause.TOO_LARGE else 415, str(error))
    if isinstance(error, UserError):
        return RequestError(422, str(error))
    if isinstance(error, MemoryError):
        return RequestError(503, "the server is out of memory; try again in a moment", retry_after=5)
    log.error("a request failed", exc_info=error)
    return RequestError(500, "the server failed on this request; see the log of the server for the reason")


def json_bytes(content: object) -> bytes:
    """Convert content to JSON in UTF-8. Lone surrogates, as in file names that are not UTF-8, become `?`."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def json_list(rows: Iterable[object]) -> bytes:
    """Convert rows to a JSON list in UTF-8. They are encoded one by one, so that other threads can run in between."""
    return b"[" + b",".join(map(json_bytes, rows)) + b"]"


def server_sent(content: object, event: str | None = None) -> bytes:
    """Return a server-sent event. Its data are `content`, unchanged if it is a text, and otherwise as JSON."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + (content.encode() if isinstance(content, str) else json_bytes(content)) + b"\n\n"
