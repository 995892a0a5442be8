"""Images in requests. An image may be the body, a part of a form, or a data URI in JSON.

Shapes: S image size in pixels.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from fastapi import Request
from PIL import Image
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from grr_coca.common.errors import suggest_name
from grr_coca.common.shapes import UInt8
from grr_coca.data.isolated import HelperLimits, vector_format
from grr_coca_serve.daemon_threads import DaemonThreads
from grr_coca_serve.request_error import RequestError

if TYPE_CHECKING:
    from grr_coca.data.preprocess import Preprocess
    from grr_coca_serve.guard import Limits

Options = TypeVar("Options", bound=BaseModel)

_NAME = "the picture"
_DECODE_THREADS, _DRAW_THREADS = 6, 2
"""Maximum number of raster images, and of drawings (vector images), that are decoded at the same time, each in a
subprocess. It is easy to create a drawing that is slow to decode, so drawings wait only for each other, and do not
delay raster images."""
_DATA_URI = re.compile(r"data:image/[\w.+-]+(?:;[\w=.+-]+)*;base64,", re.ASCII | re.IGNORECASE)
_REMOTE = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_picture(text: str) -> bool:
    """Return whether a text begins like the data URI of an image. `from_data_uri` checks the rest."""
    return text[:11].lower() == "data:image/"


def from_data_uri(text: str, param: str) -> bytes:
    """Return the bytes of an image in a data URI. URLs are never fetched.

    Raises:
        RequestError: If the text is not a data URI of an image. The error names `param` as the invalid key.
    """
    if _REMOTE.match(text):
        message = "URLs are never fetched; send the image itself, as data:image/png;base64,…"
        raise RequestError(400, f"{param}: {message}", param=param)
    head = _DATA_URI.match(text[:200])
    if head is None:
        raise RequestError(
            400, f"{param}: not the data URI of an image; send the image as data:image/png;base64,…", param=param
        )
    try:
        return base64.b64decode(text[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"{param}: not valid base64 ({error})", param=param) from error


# --- Requests with an image and options


async def picture_and_options(request: Request, model: type[Options]) -> tuple[bytes, Options]:
    """Return the bytes of the image in a request, which are empty if it has no image, and the options.

    The body is the image itself, a form with a part `image`, or JSON whose key `image` has a data URI. The options are
    in the query, or next to the image in the form or the JSON.

    Raises:
        RequestError: If the body is not valid JSON or not a valid form, a key is unknown, or a value is invalid.
    """
    given = _parse_query(request, model)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    picture = b""
    if kind == "application/json":
        content = _parse_json(await request.body())
        written = content.pop("image", "")
        if not isinstance(written, str):
            raise RequestError(422, "image: must be a text; send data:image/png;base64,…", param="image")
        picture = from_data_uri(written, "image") if written else b""
        given |= content
    elif kind == "multipart/form-data":
        try:
            form = await _FormInMemory(request.headers, request.stream(), max_files=1, max_fields=100).parse()
        except MultiPartException as error:
            raise RequestError(400, error.message) from error
        try:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile) and name == "image":
                    picture = await value.read()
                elif isinstance(value, UploadFile):
                    raise RequestError(422, f"the form has a file '{name}'; rename it to 'image'", param=name)
                else:
                    _add_option(given, name, value, model)
        finally:
            await form.close()
    else:
        picture = await request.body()
    return picture, validate_options(model, given)


class _FormInMemory(MultiPartParser):
    """Form parser that does not write to disk, which may be full. The entire body is in memory anyway."""

    spool_max_size = 0


def validate_options(model: type[Options], given: Mapping[str, Any]) -> Options:
    """Convert options to an instance of a Pydantic model.

    Raises:
        RequestError: If a key is unknown, or a value is invalid. The message names the key.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise validation_error(error, model.model_fields) from error


def validation_error(error: Any, names: "Mapping[str, Any] | None" = None) -> RequestError:
    """Convert a Pydantic validation error to an error response that names the invalid key.

    Args:
        error: The validation error.
        names: Valid keys, from which the message suggests a key if the key is unknown.
    """
    # If a value may have several types, Pydantic reports errors for each type. The deepest error is for the type that
    # matches best.
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    place = ".".join(str(part) for part in first["loc"] if not _is_type_name(part))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key; {suggest_name(place, names)}" if names else "unknown key"
    return RequestError(422, f"{place}: {message}" if place else message, param=place or None)


def _is_type_name(part: str | int) -> bool:
    """Return whether Pydantic inserted a part into the path of an error: `body`, or one of several possible types."""
    return isinstance(part, str) and (part == "body" or "[" in part or "-" in part or part[:1].isupper())


def _parse_query(request: Request, model: type[BaseModel]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        _add_option(given, name, value, model)
    return given


def _add_option(given: dict[str, Any], name: str, value: str, model: type[BaseModel]) -> None:
    """Add a value from a query or form to `given`. Only a key whose value is a list may be repeated.

    Other repeated keys raise a `RequestError`.
    """
    field = model.model_fields.get(name)
    if field is not None and "list" in str(field.annotation):
        given.setdefault(name, []).append(value)
    elif name in given:
        raise RequestError(422, f"{name}: duplicate key; send it once", param=name)
    else:
        given[name] = value


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(422, f"the body is not JSON ({str(error)[:200]}); send a JSON object") from error
    if not isinstance(content, dict):
        raise RequestError(422, 'the body must be a JSON object, such as {"image": …}')
    return content


# --- Decoding

_MAX_WHOLE_PIXELS = 25_000_000
"""Number of pixels above which JPEG files are decoded at a fraction of their size. Their sides are then still at least
four times as long as those of the model's input.
"""
_SPARE = 4
_CPU_SECONDS = 2.0
"""Maximum processor time per image. Even while four images use all of this time, threads remain for other images."""
_MEMORY = 2**29
"""Maximum address space of a subprocess, in bytes. A subprocess needs about 0.2 GB before it decodes anything."""
_BYTES_PER_PIXEL = 20
"""Additional bytes of memory, per pixel of the largest permitted image, that one subprocess at a time may use."""


def limits_of_helpers(limits: "Limits") -> HelperLimits:
    """Return the limits of the subprocesses that decode images of requests."""
    return HelperLimits(
        cpu_seconds=_CPU_SECONDS,
        wall_seconds=limits.seconds,
        memory=_MEMORY,
        large_memory=_MEMORY + _BYTES_PER_PIXEL * limits.max_pixels,
        count=_DECODE_THREADS + _DRAW_THREADS,
    )


class PictureReader:
    """Decoder of images in requests. Subprocesses decode the images, and threads wait for their results.

    Args:
        max_pixels: Maximum number of pixels. Larger images are rejected before any pixel is decoded.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._decoding = DaemonThreads(_DECODE_THREADS, "decode")
        self._drawing = DaemonThreads(_DRAW_THREADS, "draw")

    def close(self) -> None:
        """End the threads after the work that is already queued. This method does not wait for them."""
        self._decoding.close()
        self._drawing.close()

    async def square(self, data: bytes, preprocess: "Preprocess") -> UInt8[np.ndarray, "S S 3"]:
        """Decode an image to the pixels that the model takes as its input.

        Raises:
            RequestError, UserError: If the data are not an image, or exceed a limit.
        """
        workers = self._decoding if vector_format(data) is None else self._drawing
        return await workers.do(self._square, data, preprocess)

    def _square(self, data: bytes, preprocess: "Preprocess") -> UInt8[np.ndarray, "S S 3"]:
        _require_picture(data)
        return np.asarray(preprocess.decode_square(data, _NAME, **self._decoding_options(preprocess)))

    def decoded(self, data: bytes, preprocess: "Preprocess") -> Image.Image:
        """Decode an image for display, at full size. JPEG files above 25 megapixels may be scaled down.

        Raises:
            RequestError, UserError: If the data are not an image, or exceed a limit.
        """
        _require_picture(data)
        return preprocess.decode(data, _NAME, for_display=True, **self._decoding_options(preprocess))

    def _decoding_options(self, preprocess: "Preprocess") -> dict[str, Any]:
        at_least = (_SPARE * preprocess.image_size,) * 2
        return {"max_pixels": self._max_pixels, "at_least": at_least, "above": _MAX_WHOLE_PIXELS}


def _require_picture(data: bytes) -> None:
    if not data:
        raise RequestError(422, "no image sent; send its bytes as the body, or as the part 'image' of a form")
