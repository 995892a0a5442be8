"""`POST /classify`: find the best matching labels of an image."""

from typing import Annotated, Self

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, model_validator

from grr_coca.infer.class_names import BARE_NAME, filled_length
from grr_coca_serve.pictures import picture_and_options
from grr_coca_serve.queue import wait_for_results
from grr_coca_serve.responses import json_response
from grr_coca_serve.schemas import Strict, Words, answers, picture_request
from grr_coca_serve.service import Place, QueuedRoute, ThisService, deadline_of

router = APIRouter(route_class=QueuedRoute)

_MAX_FILLED_LENGTH = 1_000_000
"""Maximum number of characters in total after all labels have been filled into all templates. This is enough for 1,000
labels in 16 templates of 60 characters."""


class LabelOptions(Strict):
    """Labels to choose from, and templates in which `{}` represents a label."""

    labels: Annotated[list[Words], Field(min_length=2, max_length=1000, fail_fast=True)]
    templates: Annotated[list[Words], Field(min_length=1, max_length=16, fail_fast=True)] = list(BARE_NAME)
    top: Annotated[int, Field(ge=1, le=1000)] = 5

    @model_validator(mode="after")
    def _require_short_sentences(self) -> Self:
        """Limit the total length of the filled templates, because a template may repeat its placeholder many times.

        Longer inputs raise a `ValueError`, which Pydantic reports to the client.
        """
        length = filled_length(self.labels, self.templates)
        if length > _MAX_FILLED_LENGTH:
            raise ValueError(
                f"the filled templates have {length:,} characters (limit {_MAX_FILLED_LENGTH:,}); send "
                "fewer labels or templates"
            )
        return self


class LabelShare(BaseModel):
    """Label and its probability."""

    label: str
    probability: float


class LabelAnswer(BaseModel):
    """Most likely labels, best first. The probabilities of all labels sum to 1."""

    labels: list[LabelShare]
    model: str


@router.post(
    "/classify",
    responses=answers(LabelAnswer, 415, 422),
    openapi_extra=picture_request(LabelOptions, {"labels": ["heart", "star"]}),
)
async def classify(request: Request, service: ThisService, place: Place) -> Response:
    """Return the best matching labels of an image, with probabilities. Any labels work (zero-shot)."""
    data, options = await picture_and_options(request, LabelOptions)
    expires = deadline_of(request)
    place.take()
    pixels = await service.square(data)
    classifier = await service.classifier(options.labels, options.templates, expires)
    (row,) = await wait_for_results(service.queue.embed_images([pixels], expires))
    (ranked,) = service.queue.ready().rank_labels(classifier, row[None])
    best = [{"label": label, "probability": share} for label, share in ranked[: options.top]]
    return json_response({"labels": best, "model": service.model_name})
