"""`POST /caption`: caption an image, in a single response or streamed."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from grr_coca.infer.generate import GenerationOptions
from grr_coca.infer.image_text_model import Description
from grr_coca.infer.tags import MAX_TAGS
from grr_coca_serve.pictures import picture_and_options
from grr_coca_serve.queue import caption_pieces, wait_for_first
from grr_coca_serve.request_error import server_sent, to_request_error
from grr_coca_serve.responses import event_stream, json_response
from grr_coca_serve.schemas import Strict, answers, picture_request
from grr_coca_serve.service import Place, QueuedRoute, ThisService, deadline_of

router = APIRouter(route_class=QueuedRoute)


class CaptionOptions(Strict):
    """Options of `GenerationOptions`, with limits, the start of the caption (`prompt`), and the number of tags."""

    prompt: Annotated[str, Field(max_length=500)] = ""
    num_captions: Annotated[int, Field(ge=1, le=8)] = 1
    max_length: Annotated[int, Field(ge=1, le=1024)] | None = None
    min_length: Annotated[int, Field(ge=0, le=1024)] = 0
    temperature: float | None = None
    top_k: Annotated[int, Field(ge=1, le=100_000)] | None = None
    top_p: float | None = None
    min_p: float | None = None
    num_beams: Annotated[int, Field(ge=1, le=8)] = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: Annotated[int, Field(ge=0, le=64)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    tags: Annotated[
        int, Field(ge=0, le=MAX_TAGS, description="number of tags for the image, in addition to captions")
    ] = 0

    def generation(self) -> GenerationOptions:
        """Return the decoding options, without the prompt and the number of tags.

        Raises:
            UserError: If an option is out of range, or options contradict each other.
        """
        return GenerationOptions(**self.model_dump(exclude={"prompt", "tags"}))


class CaptionText(BaseModel):
    """A caption, and the sum of the log-probabilities of its tokens, which is null if no decoder computed them."""

    text: str
    log_prob: float | None


class TagText(BaseModel):
    """Tag, and the probability that users would assign it to the image."""

    tag: str
    probability: float


class CaptionAnswer(BaseModel):
    """Captions of an image, best first.

    `caption` is the best caption, and `confidence` the probability that it is exactly right. `unfamiliar` states
    whether the image is unlike the training images, or is null if this is unknown. `tags` has the requested number of
    tags, most likely first.
    """

    caption: str
    captions: list[CaptionText]
    confidence: float | None
    unfamiliar: bool | None
    tags: list[TagText]
    model: str


@router.post(
    "/caption",
    responses=answers(CaptionAnswer, 415, 422, streams=True),
    openapi_extra=picture_request(CaptionOptions, {"num_beams": 2, "num_captions": 2}),
)
async def caption(request: Request, service: ThisService, place: Place) -> Response:
    """Caption an image. The response is streamed if the client accepts `text/event-stream`."""
    data, options = await picture_and_options(request, CaptionOptions)
    generation, expires = options.generation(), deadline_of(request)
    place.take()
    pixels = await service.square(data)
    start = partial(service.queue.caption, pixels, expires, options.prompt, generation, num_tags=options.tags)
    if "text/event-stream" not in request.headers.get("accept", ""):
        found = await asyncio.wrap_future(start())
        captions = [{"text": one.text, "log_prob": one.log_prob} for one in found.captions]
        answer = {
            "caption": found.captions[0].text,
            "captions": captions,
            **_confidence_and_tags(found),
            "model": service.model_name,
        }
        return json_response(answer)
    pieces = caption_pieces(start)
    return event_stream(_caption_events(await wait_for_first(pieces)))


def _confidence_and_tags(found: Description) -> dict[str, object]:
    """Return the confidence of a caption and the tags of its image for JSON. Unknown values are None."""
    tags = [{"tag": tag.text, "probability": tag.probability} for tag in found.tags]
    return {"confidence": found.confidence, "unfamiliar": found.unfamiliar, "tags": tags}


async def _caption_events(pieces: AsyncIterator[str | Description]) -> AsyncIterator[bytes]:
    """Yield the server-sent events of a caption: the text so far after each new piece, and finally `done` or `error`.

    `done` has the complete text, its confidence and the tags.
    """
    text = ""
    try:
        async for piece in pieces:
            if isinstance(piece, str):
                text += piece
                yield server_sent({"text": text})
            else:
                yield server_sent({"text": piece.captions[0].text, **_confidence_and_tags(piece)}, "done")
    except Exception as error:
        yield server_sent(to_request_error(error).content, "error")
