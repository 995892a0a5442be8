"""`POST /embed`: embed texts and images."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict

from grr_coca_serve.pictures import from_data_uri, is_picture
from grr_coca_serve.request_error import json_list
from grr_coca_serve.schemas import HEART, TEXT_LIST_FIELD, Strict, WordsOrPicture, answers
from grr_coca_serve.service import Place, QueuedRoute, ThisService, deadline_of

router = APIRouter(route_class=QueuedRoute)


class EmbedInput(Strict):
    """Texts and images (as data URIs) to embed, in the format of Hugging Face's inference servers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": ["a red heart", HEART]}]})

    inputs: WordsOrPicture | Annotated[list[WordsOrPicture], TEXT_LIST_FIELD]
    normalize: Literal[True] = True
    truncate: bool = True


@router.post("/embed", responses=answers(list[list[float]], 415, 422))
async def embed(given: EmbedInput, request: Request, service: ThisService, place: Place) -> Response:
    """Embed texts, and images as data URIs. The response is a list of unit vectors."""
    inputs = [given.inputs] if isinstance(given.inputs, str) else given.inputs
    decoded = [from_data_uri(one, "inputs") if is_picture(one) else one for one in inputs]
    place.take(sum(isinstance(one, bytes) for one in decoded))
    vectors = await service.embedded(decoded, deadline_of(request))
    content = await service.run_in_thread(
        lambda: json_list(row.tolist() for row in vectors)
    )  # may be several megabytes
    return Response(content, media_type="application/json")
