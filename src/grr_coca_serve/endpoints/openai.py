"""Endpoints of the OpenAI API: chat completions (as captions), embeddings and models.

A chat completion is the caption of the last image in the conversation. Instructions are ignored, because the model can
only caption images. If the last message is from the assistant, the caption starts with its text. Unsupported keys that
would change the answer are rejected; other unsupported keys are ignored, because clients send many of them by default.
"""

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from grr_coca.data.tokenizer import clean_prompt
from grr_coca.infer.generate import Caption, GenerationOptions
from grr_coca.infer.image_text_model import Description
from grr_coca_serve.pictures import from_data_uri, is_picture
from grr_coca_serve.queue import caption_pieces, wait_for_first
from grr_coca_serve.request_error import RequestError, json_bytes, json_list, server_sent, to_request_error
from grr_coca_serve.responses import event_stream, json_response
from grr_coca_serve.schemas import HEART, TEXT_LIST_FIELD, Text, Words, WordsOrPicture, answers
from grr_coca_serve.service import Place, QueuedRoute, Service, ThisService, deadline_of

router = APIRouter(prefix="/v1")
_queued = APIRouter(prefix="/v1", route_class=QueuedRoute)
_CREATED = int(time.time())


_CHAT: dict[str, Any] = {
    "model": "icons",
    "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": HEART}}]}],
}
"""Example of a request."""


class ImageUrl(BaseModel):
    """Image in a message. `url` is the image as `data:image/…;base64,…`."""

    url: str


class TextPart(BaseModel):
    """Text in a message, which is ignored."""

    type: Literal["text"]
    text: Text


class ImagePart(BaseModel):
    """Image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """Message in a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=100, fail_fast=True)] | None = None


class StreamOptions(BaseModel):
    """Options of a streamed answer. `include_usage` states whether the last chunk contains the token counts."""

    include_usage: bool | None = None


class ChatInput(BaseModel):
    """Request for a caption."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CHAT]})

    model: Text
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000, fail_fast=True)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: Text | Annotated[list[Words], Field(max_length=4, fail_fast=True)] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None


class EmbeddingsInput(BaseModel):
    """Texts and images (as data URIs) to embed."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "icons", "input": ["a red heart", HEART]}]})

    model: Text
    input: (
        WordsOrPicture
        | Annotated[list[WordsOrPicture], TEXT_LIST_FIELD]
        | Annotated[list[int], TEXT_LIST_FIELD]
        | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], TEXT_LIST_FIELD]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class ServedModel(BaseModel):
    """Model of the server."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Models of the server."""

    object: Literal["list"]
    data: list[ServedModel]


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


class EmbeddingRow(BaseModel):
    """Vector of unit length, as numbers or as base64-encoded 32-bit floats."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(BaseModel):
    """Embeddings, in the order of the inputs."""

    object: Literal["list"]
    data: list[EmbeddingRow]
    model: str
    usage: Usage


class ChatAnswer(BaseModel):
    """Caption, as a message of the assistant."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage


@router.get("/models", responses=answers(ModelList))
async def models(service: ThisService) -> Response:
    """Return the model of this server."""
    return json_response({"object": "list", "data": [_model(service)]})


@router.get("/models/{name:path}", responses=answers(ServedModel, 404))
async def model(name: str, service: ThisService) -> Response:
    """Return the model with the given name."""
    _require_model(name, service)
    return json_response(_model(service))


@_queued.post("/embeddings", responses=answers(EmbeddingsAnswer, 404, 415, 422))
async def embeddings(given: EmbeddingsInput, request: Request, service: ThisService, place: Place) -> Response:
    """Embed texts, and images as data URIs."""
    _require_model(given.model, service)
    given_inputs = [given.input] if isinstance(given.input, str) else given.input
    inputs = [one for one in given_inputs if isinstance(one, str)]
    if len(inputs) < len(given_inputs):
        raise RequestError(
            400,
            "input: token ids are not supported; send texts. In langchain: "
            "OpenAIEmbeddings(check_embedding_ctx_length=False)",
            param="input",
        )
    width = service.queue.ready().engine.embed_dim
    if given.dimensions not in (None, width):
        raise RequestError(
            400, f"dimensions must be {width} for this model, got {given.dimensions}", param="dimensions"
        )
    decoded = [from_data_uri(one, "input") if is_picture(one) else one for one in inputs]
    place.take(sum(isinstance(one, bytes) for one in decoded))
    vectors = await service.embedded(decoded, deadline_of(request))
    texts = [one for one in decoded if isinstance(one, str)]
    content = await service.run_in_thread(_embeddings_answer, service, vectors, texts, given.encoding_format)
    return Response(content, media_type="application/json")


@_queued.post("/chat/completions", responses=answers(ChatAnswer, 404, 415, 422, streams=True))
async def chat(given: ChatInput, request: Request, service: ThisService, place: Place) -> Response:
    """Caption the image of a conversation."""
    _require_model(given.model, service)
    _require_supported(given)
    data, prompt = _picture_of(given.messages), _prompt_of(given.messages)
    options, expires = _options(given, service, prompt), deadline_of(request)
    place.take()
    pixels = await service.square(data)
    start = partial(service.queue.caption, pixels, expires, prompt, options)
    answer = _Answer(given, service, prompt)
    if given.stream:
        return event_stream(answer.events(await wait_for_first(caption_pieces(start))))
    return json_response(answer.complete(await asyncio.wrap_future(start())))


router.routes.extend(_queued.routes)


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.model_name, "object": "model", "created": _CREATED, "owned_by": "grr-coca"}


def _require_model(name: str, service: Service) -> None:
    if name != service.model_name:
        message = f"unknown model '{name[:200]}'; the model of this server is '{service.model_name}'"
        raise RequestError(404, message, param="model")


def _embeddings_answer(service: Service, vectors: np.ndarray, texts: list[str], encoding: str) -> bytes:
    """Return embeddings as JSON. Call this in a thread, because the JSON may have several megabytes."""
    rows = json_list(
        {"object": "embedding", "index": number, "embedding": _encode_vector(row, encoding)}
        for number, row in enumerate(vectors)
    )
    count = sum(map(service.num_tokens, texts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    rest = json_bytes({"object": "list", "model": service.model_name, "usage": usage})
    return b'{"data":' + rows + b"," + rest[1:]


def _encode_vector(vector: np.ndarray, encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector.tolist()
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


# --- Chat completions


def _require_supported(given: ChatInput) -> None:
    """Reject keys and values that this model does not support.

    Raises:
        RequestError: If a key or its value is unsupported. The message names the key.
    """
    if given.response_format is not None and given.response_format.get("type") != "text":
        raise RequestError(
            400, "response_format must be text, because captions are plain text", param="response_format"
        )
    if given.tools and given.tool_choice not in (None, "auto", "none"):
        raise RequestError(400, "tool_choice must be none, because this model does not call tools", param="tool_choice")


def _picture_of(messages: list[Message]) -> bytes:
    """Return the last image of the conversation.

    Raises:
        RequestError: If the conversation has no image, or if the last image is not a valid data URI.
    """
    for message in reversed(messages):
        for part in reversed(message.content if isinstance(message.content, list) else []):
            if isinstance(part, ImagePart):
                return from_data_uri(part.image_url.url, "image_url")
    raise RequestError(
        400,
        "no image: this model captions images, so send one in a message, as "
        '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}',
        param="messages",
    )


def _prompt_of(messages: list[Message]) -> str:
    """Return the start of the caption, which is the text of the last message if that message is from the assistant.

    Otherwise, the result is empty.
    """
    last = messages[-1]
    if last.role != "assistant" or last.content is None:
        return ""
    if isinstance(last.content, str):
        return clean_prompt(last.content)
    return clean_prompt(" ".join(part.text for part in last.content if isinstance(part, TextPart)))


def _options(given: ChatInput, service: Service, prompt: str) -> GenerationOptions:
    """Return the options for greedy decoding, or for sampling if the temperature is above 0.

    If the request limits the number of tokens, this limit is reduced to what fits into the model's context.
    """
    limit = given.max_completion_tokens or given.max_tokens
    max_length = None if limit is None else min(limit, service.max_tokens_after(prompt))
    count = given.n or 1
    if not given.temperature:
        return GenerationOptions(max_length=max_length, num_beams=count, num_captions=count)
    return GenerationOptions(
        max_length=max_length,
        num_captions=count,
        temperature=max(given.temperature, 1e-3),
        top_p=None if given.top_p is None else max(given.top_p, 1e-6),
        seed=secrets.randbelow(2**31) if given.seed is None else given.seed % 2**63,
    )


class _Answer:
    """Writer of the answer to one request: `complete` for a single response, or `events` for a streamed response."""

    def __init__(self, given: ChatInput, service: Service, prompt: str) -> None:
        self._given, self._service = given, service
        self._num_prompt = service.num_tokens(prompt)
        self._prompt = prompt
        self._stops = [given.stop] if isinstance(given.stop, str) and given.stop else list(given.stop or [])
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.model_name,
        }

    def complete(self, found: Description) -> dict[str, Any]:
        """Return the complete answer for JSON, with a choice for each caption."""
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": self._cut_at_stop_text(caption.text), "refusal": None},
                "logprobs": None,
                "finish_reason": self._reason(caption),
            }
            for number, caption in enumerate(found.captions)
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage(found)}

    async def events(self, pieces: AsyncIterator[str | Description]) -> AsyncIterator[bytes]:
        """Yield the answer in chunks as the caption is generated. An error during this becomes a chunk."""
        sent: dict[int, str] = {}
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            text = ""
            async for piece in pieces:
                if isinstance(piece, str):
                    text += piece
                    # If the request has stop texts, the end of the text so far may be the start of one of them. The
                    # text is then sent only after it has been cut at a stop text, or is complete.
                    complete = self._cut_at_stop_text(text)
                    if (not self._stops or len(complete) < len(text)) and (
                        more := self._unsent_chunk(complete, 0, sent)
                    ):
                        yield more
                    continue
                for number, caption in enumerate(piece.captions):
                    if more := self._unsent_chunk(self._cut_at_stop_text(caption.text), number, sent):
                        yield more
                    yield self._chunk({}, number, self._reason(caption))
                if self._given.stream_options and self._given.stream_options.include_usage:
                    yield server_sent({**self._chunk_head(), "choices": [], "usage": self._usage(piece)})
        except Exception as error:
            yield server_sent(to_request_error(error).content)
        yield server_sent("[DONE]")

    def _unsent_chunk(self, text: str, number: int, sent: dict[int, str]) -> bytes:
        """Return a chunk with the unsent part of a text, or no bytes if all of the text has been sent.

        `sent` has the sent text of each choice, and is updated.
        """
        more = text[len(sent.get(number, "")) :]
        sent[number] = text
        return self._chunk({"content": more}, number) if more else b""

    def _chunk(self, delta: dict[str, str], number: int = 0, reason: str | None = None) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}
        return server_sent({**self._chunk_head(), "choices": [choice]})

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"}

    def _cut_at_stop_text(self, text: str) -> str:
        """Return the part of a caption before the first stop text after the prompt, or all of it if there is none."""
        ends = [place for stop in self._stops if (place := text.find(stop, len(self._prompt))) >= 0]
        return text[: min(ends)] if ends else text

    def _reason(self, caption: Caption) -> str:
        is_whole = caption.token_ids[-1:] == (self._service.queue.ready().tokenizer.eos_id,)
        return "stop" if is_whole or self._cut_at_stop_text(caption.text) != caption.text else "length"

    def _usage(self, found: Description) -> dict[str, int]:
        count = sum(len(caption.token_ids) for caption in found.captions)
        return {
            "prompt_tokens": self._num_prompt,
            "completion_tokens": count,
            "total_tokens": self._num_prompt + count,
        }
