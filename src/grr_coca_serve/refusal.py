"""What the server does not do, told in JSON: a status, and a sentence for a person."""

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
"""The type of an error by its status, as clients of OpenAI know them. Others below 500 are invalid requests."""


MAX_BYTES = 2048
"""The JSON of an error has no more. A message may quote the request, which may have megabytes."""


class Refusal(Exception):  # noqa: N818 (not an error of the server)
    """A request that gets an error instead of an answer.

    Args:
        status: of HTTP.
        message: a sentence for a person, who sees nothing else. A long one is cut.
        param: the key of the request that is wrong. A long one is cut.
        retry_after: seconds after which another attempt may succeed.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        self.message = _cut(message, MAX_BYTES - 512)
        super().__init__(self.message)
        self.status = status
        self.param = None if param is None else _cut(param, 256)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After`, and how to authenticate."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else {})

    @property
    def content(self) -> dict[str, object]:
        """The JSON of the response, in the form that clients of OpenAI read."""
        other = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        kind = _KINDS.get(self.status, other)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}


def _cut(text: str, max_bytes: int) -> str:
    """The beginning of a text that takes no more bytes in JSON."""
    cut = text[:max_bytes]
    while len(json_bytes(cut)) > max_bytes:
        cut = cut[: len(cut) * 3 // 4]
    return cut if len(cut) == len(text) else f"{cut}…"


def refusal_of(error: Exception) -> Refusal:
    """What a client is told of an error. One that is a defect of the server is logged, and not told."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, BadSample):
        if error.cause is Cause.UNREADABLE:  # a drawing for which the server had no time
            return Refusal(503, str(error), retry_after=5)
        return Refusal(413 if error.cause is Cause.TOO_LARGE else 415, str(error))
    if isinstance(error, UserError):
        return Refusal(422, str(error))
    if isinstance(error, MemoryError):
        return Refusal(503, "the server is out of memory; try again in a moment", retry_after=5)
    log.error("a request failed", exc_info=error)
    return Refusal(500, "the server failed on this request; its log says why")


def json_bytes(content: object) -> bytes:
    """JSON as UTF-8. Half an emoji, or the bytes of a file name that are not UTF-8, become `?`."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def json_list(rows: Iterable[object]) -> bytes:
    """JSON of a list as UTF-8. It is encoded row by row, so that other threads get their turns in between."""
    return b"[" + b",".join(map(json_bytes, rows)) + b"]"


def server_sent(content: object, event: str | None = None) -> bytes:
    """One server-sent event with JSON (or a text as it is) as its data."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + (content.encode() if isinstance(content, str) else json_bytes(content)) + b"\n\n"
