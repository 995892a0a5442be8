"""Pictures in requests (the body itself, a part of a form, or a data URI in JSON), and thumbnails in answers.

Shapes: S image size in pixels.
"""

import asyncio
import base64
import binascii
import io
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from grr_coca.common.errors import UserError, nearest
from grr_coca.common.shapes import UInt8
from grr_coca.data.images import BROKEN, decode_image, open_header, with_srgb_colours
from grr_coca.data.sources.base import BadSample
from grr_coca.data.svg import is_svg
from grr_coca.serve.refusal import Refusal

if TYPE_CHECKING:
    from grr_coca.data.preprocess import Preprocess
    from grr_coca.search.entry import Entry

Options = TypeVar("Options", bound=BaseModel)

_NAME = "the picture"
_DATA_URI = re.compile(r"data:image/[\w.+-]+(?:;[\w=.+-]+)*;base64,", re.ASCII | re.IGNORECASE)
_REMOTE = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_picture(text: str) -> bool:
    """True if a text is a picture as a data URI."""
    return text[:11].lower() == "data:image/"


def from_data_uri(text: str, param: str) -> bytes:
    """The bytes of a picture in a data URI. Addresses are never fetched.

    Raises:
        Refusal: it is something else; `param` names its key.
    """
    if _REMOTE.match(text):
        message = "remote addresses are never fetched; send the picture itself, as data:image/png;base64,…"
        raise Refusal(400, f"{param}: {message}", param=param)
    head = _DATA_URI.match(text[:200])
    if head is None:
        raise Refusal(400, f"{param}: not a picture; send it as data:image/png;base64,…", param=param)
    try:
        return base64.b64decode(text[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"{param}: not valid base64 ({error})", param=param) from error


# --- Requests with a picture and options


async def picture_and_options(request: Request, model: type[Options]) -> tuple[bytes, Options]:
    """The picture of a request (empty if there is none), and its options.

    The body is the picture itself, with options in the query; or a form with the part `image`; or JSON with a data URI
    under `image`. Options stand beside the picture, or in the query.

    Raises:
        Refusal: a key is unknown, or a value is invalid.
    """
    given = _query(request, model)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    picture = b""
    if kind == "application/json":
        content = _json(await request.body())
        written = content.pop("image", "")
        if not isinstance(written, str):
            raise Refusal(422, "image: not a text; send data:image/png;base64,…", param="image")
        picture = from_data_uri(written, "image") if written else b""
        given |= content
    elif kind == "multipart/form-data":
        try:
            form = await _FormInMemory(request.headers, request.stream(), max_files=1, max_fields=100).parse()
        except MultiPartException as error:
            raise Refusal(400, error.message) from error
        try:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile) and name == "image":
                    picture = await value.read()
                elif isinstance(value, UploadFile):
                    raise Refusal(422, f"the form has a file '{name}'; call it 'image'", param=name)
                else:
                    _add(given, name, value, model)
        finally:
            await form.close()
    else:
        picture = await request.body()
    return picture, parsed(model, given)


class _FormInMemory(MultiPartParser):
    """Writes no file to the disk, which may be full: memory holds the whole body anyway."""

    spool_max_size = 0


def parsed(model: type[Options], given: Mapping[str, Any]) -> Options:
    """Options as a model.

    Raises:
        Refusal: a key is unknown, or a value is invalid; the message names it.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid(error, model.model_fields) from error


def invalid(error: Any, names: "Mapping[str, Any] | None" = None) -> Refusal:
    """The refusal of a value that Pydantic has refused."""
    first = max(error.errors(), key=lambda one: len(one["loc"]))  # of several forms, the one that fits furthest
    place = ".".join(str(part) for part in first["loc"] if not _is_name_of_type(part))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"there is no such key; {nearest(place, names)}" if names else "there is no such key"
    return Refusal(422, f"{place}: {message}" if place else message, param=place or None)


def _is_name_of_type(part: str | int) -> bool:
    """True for what Pydantic puts between keys: the body, or one of several types."""
    return isinstance(part, str) and (part == "body" or "[" in part or "-" in part or part[:1].isupper())


def _query(request: Request, model: type[BaseModel]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        _add(given, name, value, model)
    return given


def _add(given: dict[str, Any], name: str, value: str, model: type[BaseModel]) -> None:
    """Add a value of a query or form. A key may be repeated if it has a list."""
    field = model.model_fields.get(name)
    if field is not None and "list" in str(field.annotation):
        given.setdefault(name, []).append(value)
    elif name in given:
        raise Refusal(422, f"{name}: given twice", param=name)
    else:
        given[name] = value


def _json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(422, f"the body is not JSON ({str(error)[:200]})") from error
    if not isinstance(content, dict):
        raise Refusal(422, "the body is not a JSON object")
    return content


# --- Decoding


class PictureReader:
    """Decodes pictures in threads of its own, after a look at the header.

    Args:
        max_pixels: larger pictures are refused before any pixel is decoded.
        threads: how many pictures are decoded at a time.
    """

    def __init__(self, max_pixels: int, threads: int) -> None:
        self._max_pixels = max_pixels
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._thumbnails = _Cache(64 * 2**20)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    async def square(self, data: bytes, preprocess: "Preprocess") -> UInt8[np.ndarray, "S S 3"]:
        """The pixels of a picture as the model takes them.

        Raises:
            Refusal, UserError: it is no picture, or too large.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._square, data, preprocess)

    def _square(self, data: bytes, preprocess: "Preprocess") -> UInt8[np.ndarray, "S S 3"]:
        self._require_pixels(data)
        return preprocess(preprocess.decode(data, _NAME))

    def _require_pixels(self, data: bytes) -> None:
        if not data:
            raise Refusal(422, "there is no picture; send its bytes as the body, or as the part 'image' of a form")
        if is_svg(data):
            return
        try:
            width, height = open_header(data, _NAME).size
        except (*BROKEN, BadSample):
            return  # decoding says what is wrong
        if width * height > self._max_pixels:
            raise Refusal(413, f"too many pixels: {width * height:,} (limit {self._max_pixels:,}); scale it down first")

    async def thumbnail(self, entry: "Entry", side: int) -> bytes | None:
        """An image of an index as WebP, its longest side at most `side`; None if its file is gone or broken."""
        key = (entry.name, entry.stamp, side)
        known = self._thumbnails.get(key)
        if known is None:
            known = await asyncio.get_running_loop().run_in_executor(self._pool, self._thumbnail, entry, side)
            if known is not None:
                self._thumbnails.put(key, known)
        return known

    def _thumbnail(self, entry: "Entry", side: int) -> bytes | None:
        try:
            image = decode_image(entry.span.read(), entry.name, to_srgb=True, is_scaled=True)
        except UserError:
            return None
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        with_srgb_colours(image).save(buffer, "WEBP", quality=80, method=2)
        return buffer.getvalue()


class _Cache:
    """The newest values, up to a number of bytes. Used from the event loop alone."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._values: OrderedDict[Any, bytes] = OrderedDict()

    def get(self, key: Any) -> bytes | None:
        """The value of a key, if it is still there."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Any, value: bytes) -> None:
        """Keep a value, and drop the oldest ones if there are too many bytes."""
        self._bytes += len(value) - len(self._values.pop(key, b""))
        self._values[key] = value
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._values.popitem(last=False)[1])
