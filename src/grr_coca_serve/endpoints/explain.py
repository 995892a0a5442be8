"""`POST /explain`: where the model looks for each word of a caption."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from grr_coca_serve.pictures import picture_and_options
from grr_coca_serve.responses import json_response
from grr_coca_serve.schemas import Strict, Text, answers, picture_request
from grr_coca_serve.service import ThisService

router = APIRouter()


class ExplainOptions(Strict):
    """`id`: a picture of the index, instead of one in the body."""

    id: Text | None = None


class WordHeat(BaseModel):
    """Where the model looks for a word: rows of numbers from 0 to 1."""

    word: str
    heat: list[list[float]]


class ExplainAnswer(BaseModel):
    """A caption with a map for each word. The maps lie over `square`, what the model sees of the picture: left, upper,
    right, lower, in shares of its width and height. It may reach beyond the picture."""

    caption: str
    square: tuple[float, float, float, float]
    words: list[WordHeat]


@router.post(
    "/explain",
    responses=answers(ExplainAnswer, 404, 415, 422, 501),
    openapi_extra=picture_request(ExplainOptions, {}),
)
async def explain(request: Request, service: ThisService) -> Response:
    """A caption, and for each of its words a map of where the model looks. The maps lie over `square`."""
    data, options = await picture_and_options(request, ExplainOptions)
    service.explainer.require()
    if options.id is not None:
        index = service.require_index()
        data = await index.files.read(await service.in_thread(index.entry, options.id))
    await service.square(data)  # says what is wrong with the picture
    return json_response(await service.explainer.explain(data))
