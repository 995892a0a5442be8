"""Schemas of requests and answers that several endpoints share, and the OpenAPI document.

The document contains examples of requests, which tests send to a server. Answers are plain dictionaries, which tests
validate against the schemas.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from grr_coca_serve.pictures import is_picture
from grr_coca_serve.served_index import MAX_RANKED

HEART = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgAQMAAABJtOi3AAAABlBMVEX////cHigwpYgPAAAAWklEQVR42m3OsQ0CMQDF0HdfSNBx"
    "G8AmsBmMllEyQsoUUUJxDUK4sFyaP2zt+nYej5pLnrvbWj2QO6ejflQZRzV6Oi2DmklhLbymMEUZonbRmuiEKkbB9r3yAVw8Hia91JwGAAAAAElFTkSuQmCC"
)
"""Image of a red heart, for examples."""
MAX_TEXTS = 2048
TEXT_LIST_FIELD = Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)
"""Limits on the length of a list of texts or images. Like all lists in requests, such a list is rejected at its first
invalid element, because Pydantic would otherwise report every invalid element."""
MAX_LIMIT = 200
"""Maximum number of hits or images per request."""


_MAX_LENGTH = 10_000


def _require_short(text: str) -> str:
    if len(text) > _MAX_LENGTH and not is_picture(text):
        raise ValueError(f"a text is too long: {len(text):,} characters (limit {_MAX_LENGTH:,})")
    return text


Text = Annotated[str, Field(max_length=_MAX_LENGTH)]
Words = Annotated[str, Field(min_length=1, max_length=_MAX_LENGTH)]
WordsOrPicture = Annotated[str, Field(min_length=1), AfterValidator(_require_short)]
"""Text, or an image as a data URI. Only the size of the request limits the length of a data URI."""
Where = Annotated[Text | None, Field(description="a filter, such as `folder = 'logos' and width > 64`")]
Offset = Annotated[int, Field(ge=0, le=MAX_RANKED, description="number of hits to skip")]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT, description="number of hits to return")]


class Strict(BaseModel):
    """Pydantic model that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid")


# --- Parts of answers


class ErrorDetail(BaseModel):
    """Details of an error. `message` is a sentence for users, and `param` the invalid key."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Answer to a request that failed."""

    error: ErrorDetail


class IndexedPicture(BaseModel):
    """Image of the index.

    `id` is valid as long as the index contains the image. `date` is in UTC, `size` in bytes, `width` and `height` in
    pixels. `is_there` states whether the file exists and may be shown. `is_vector` states whether the image is an SVG
    drawing, which is available at `/vector/ID`. `svg` is the source of this drawing, if the source was requested and is
    small.
    """

    id: str
    name: str
    caption: str
    folder: str
    date: str
    size: int
    width: int
    height: int
    fields: dict[str, str | int | float | list[str]]
    is_there: bool
    is_vector: bool
    svg: str | None = None


class Facet(BaseModel):
    """Field by which images can be filtered. A text has its most frequent values; a number or date has its bounds."""

    model_config = ConfigDict(extra="forbid")

    field: str
    kind: Literal["text", "number", "date"]
    values: list[tuple[str | int | float, int]] | None = None
    min: str | int | float | None = None
    max: str | int | float | None = None


# --- OpenAPI

_STATUS_DESCRIPTIONS = {
    400: "The request is invalid",
    401: "The key is missing or wrong",
    403: "The host, the requesting site or the location of the image is not allowed",
    404: "Not found",
    408: "The body was sent too slowly",
    413: "Too many bytes or pixels",
    415: "Not a readable image",
    422: "A key or value is invalid",
    429: "Too many requests; `Retry-After` states when to try again",
    501: "PyTorch is not installed, or cannot load the model",
    503: "Not ready, or stopping",
    504: "Too busy to answer in time",
}
_COMMON_STATUSES = (400, 401, 403, 408, 413, 429, 503, 504)
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}


def answers(model: Any, *statuses: int, streams: bool = False, success: int = 200) -> dict[int | str, dict[str, Any]]:
    """Return the responses of an endpoint for OpenAPI: the schema of its answer, and its errors.

    Args:
        model: Schema of the answer. None if the answer is not JSON.
        statuses: Error statuses, in addition to those that all endpoints have.
        streams: Whether the answer can also be a stream of server-sent events.
        success: Status of the answer.
    """
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": _STATUS_DESCRIPTIONS[status]}
        for status in (*_COMMON_STATUSES, *statuses)
    }
    answer: dict[str, Any] = {"description": "The answer"} | ({"model": model} if model is not None else {})
    return {success: answer | ({"content": _EVENTS} if streams else {}), **errors}


def picture_request(model: type[BaseModel], example: Mapping[str, object]) -> dict[str, Any]:
    """Return the part of an OpenAPI operation that describes an image with options; see `picture_and_options`.

    Args:
        model: Model of the options.
        example: Example of options, to which the image of a heart is added.
    """
    schema = model.model_json_schema()
    options, required = schema["properties"], schema.get("required", [])
    parts = {
        "multipart/form-data": {"type": "string", "format": "binary"},
        "application/json": {"type": "string", "description": "the image, as `data:image/…;base64,…`"},
    }
    content: dict[str, Any] = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
    for kind, image in parts.items():
        content[kind] = {"schema": {"type": "object", "properties": {"image": image, **options}, "required": ["image"]}}
    content["application/json"]["examples"] = {"heart": {"value": {"image": HEART, **example}}}
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": option, "description": option.get("description", "")}
        for name, option in options.items()
    ]
    needed = f" Required: {', '.join(required)}." if required else ""
    return {
        "parameters": parameters,
        "requestBody": {
            "description": f"The image, or a form or JSON with the image and options.{needed}",
            "content": content,
        },
    }
