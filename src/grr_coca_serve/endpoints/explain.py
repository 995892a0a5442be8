"""`POST /explain`: compute heat maps for the words of a caption."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from grr_coca_serve.pictures import picture_and_options
from grr_coca_serve.responses import json_response
from grr_coca_serve.schemas import Strict, Text, answers, picture_request
from grr_coca_serve.service import ThisService

router = APIRouter()


class ExplainOptions(Strict):
    """Options of an explanation. `id` identifies an image of the index, in place of an image in the body."""

    id: Text | None = None


class WordHeat(BaseModel):
    """Heat map of a word: rows of numbers from 0 to 1."""

    word: str
    heat: list[list[float]]


class ExplainAnswer(BaseModel):
    """Caption with a heat map for each word.

    The maps cover `square`, the part of the image that the model processes. Its left, upper, right and lower edges are
    in fractions of the image's width and height. The square may extend beyond the image.
    """

    caption: str
    square: tuple[float, float, float, float]
    words: list[WordHeat]


@router.post(
    "/explain",
    responses=answers(ExplainAnswer, 404, 415, 422, 501),
    openapi_extra=picture_request(ExplainOptions, {}),
)
async def explain(request: Request, service: ThisService) -> Response:
    """Return a caption, and a heat map for each of its words. The maps cover `square`."""
    data, options = await picture_and_options(request, ExplainOptions)
    service.explainer.require()
    if options.id is not None:
        index = service.require_index()
        data = await index.files.read(await service.run_in_thread(index.entry, options.id))
    await service.square(data)  # reports errors of the image
    return json_response(await service.explainer.explain(data))
