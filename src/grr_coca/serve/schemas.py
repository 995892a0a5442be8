"""What requests and answers hold. The OpenAPI document is made of these, with examples that the tests send.

Answers are written as plain dictionaries; tests hold them to the models here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from grr_coca.infer.class_names import NAME_ALONE, filled_length
from grr_coca.infer.generate import GenerationOptions
from grr_coca.search.answer import Verdict
from grr_coca.serve.guard import MAX_KEY_LENGTH
from grr_coca.serve.library import MAX_RANKED
from grr_coca.serve.pictures import is_picture

HEART = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgAQMAAABJtOi3AAAABlBMVEX////cHigwpYgPAAAAWklEQVR42m3OsQ0CMQDF0HdfSNBx"
    "G8AmsBmMllEyQsoUUUJxDUK4sFyaP2zt+nYej5pLnrvbWj2QO6ejflQZRzV6Oi2DmklhLbymMEUZonbRmuiEKkbB9r3yAVw8Hia91JwGAAAAAElFTkSuQmCC"
)
"""A picture of a red heart, for examples."""
MAX_TEXTS = 2048
SOME = Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)
"""The length of a list of texts or pictures. Like every list here, it is refused at its first wrong element: Pydantic
would otherwise write a report of each of them."""
MAX_LIMIT = 200
"""Hits or pictures that one request may ask for."""


_MAX_LENGTH = 10_000
_MAX_FILLED_LENGTH = 1_000_000
"""Characters of all labels in all templates: a thousand labels in sixteen templates of 60 characters."""


def _require_short(text: str) -> str:
    if len(text) > _MAX_LENGTH and not is_picture(text):
        raise ValueError(f"a text of {len(text):,} characters (limit {_MAX_LENGTH:,})")
    return text


Text = Annotated[str, Field(max_length=_MAX_LENGTH)]
Words = Annotated[str, Field(min_length=1, max_length=_MAX_LENGTH)]
WordsOrPicture = Annotated[str, Field(min_length=1), AfterValidator(_require_short)]
"""A text, or a picture as a data URI, which only the size of the request limits."""
Where = Annotated[Text | None, Field(description="a filter, such as `folder = 'logos' and width > 64`")]
Offset = Annotated[int, Field(ge=0, le=MAX_RANKED, description="hits to skip")]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT, description="hits to return")]


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


# --- Requests


class CaptionOptions(Strict):
    """How to decode: `GenerationOptions`, with limits for one request, and the beginning of the caption."""

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

    def generation(self) -> GenerationOptions:
        """The options of decoding.

        Raises:
            UserError: options contradict each other.
        """
        return GenerationOptions(**self.model_dump(exclude={"prompt"}))


class LabelOptions(Strict):
    """Labels to choose from, and templates in which `{}` stands for a label."""

    labels: Annotated[list[Words], Field(min_length=2, max_length=1000, fail_fast=True)]
    templates: Annotated[list[Words], Field(min_length=1, max_length=16, fail_fast=True)] = list(NAME_ALONE)
    top: Annotated[int, Field(ge=1, le=1000)] = 5

    @model_validator(mode="after")
    def _require_short_sentences(self) -> Self:
        """A template may hold its placeholder many times, so lengths that are small each become large together."""
        length = filled_length(self.labels, self.templates)
        if length > _MAX_FILLED_LENGTH:
            raise ValueError(
                f"labels and templates make sentences of {length:,} characters together (limit {_MAX_FILLED_LENGTH:,})"
            )
        return self


class SimilarOptions(Strict):
    """Which hits to return. `id`: a picture of the index, instead of one in the body."""

    id: Text | None = None
    where: Where = None
    offset: Offset = 0
    limit: Limit = 20


class ExplainOptions(Strict):
    """`id`: a picture of the index, instead of one in the body."""

    id: Text | None = None


class EmbedInput(Strict):
    """Texts and pictures (as data URIs) to embed, in the form of Hugging Face's inference servers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": ["a red heart", HEART]}]})

    inputs: WordsOrPicture | Annotated[list[WordsOrPicture], SOME]
    normalize: Literal[True] = True
    truncate: bool = True


class SearchInput(Strict):
    """What pictures should show, and which hits to return. `like`, `unlike`: ids of pictures of the index."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["red fruit"], "where": "width >= 16", "limit": 2}]}
    )

    texts: Annotated[list[Words], Field(max_length=16, fail_fast=True)] = []
    without: Annotated[list[Words], Field(max_length=16, fail_fast=True)] = []
    weights: Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(max_length=16, fail_fast=True)] = []
    like: Annotated[list[Text], Field(max_length=16, fail_fast=True)] = []
    unlike: Annotated[list[Text], Field(max_length=16, fail_fast=True)] = []
    image: Annotated[str | None, Field(description="a picture, as `data:image/…;base64,…`")] = None
    where: Where = None
    offset: Offset = 0
    limit: Limit = 60


class SessionInput(Strict):
    """The key of the server."""

    key: Annotated[str, Field(max_length=MAX_KEY_LENGTH)]


# --- Answers


class ErrorDetail(BaseModel):
    """`message`: a sentence for a person; `param`: the key that is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Why there is no answer."""

    error: ErrorDetail


class CaptionText(BaseModel):
    """A caption, and the sum of the log-probabilities of its tokens."""

    text: str
    log_prob: float


class CaptionAnswer(BaseModel):
    """Captions, the best first. `caption`: the best one. `confidence`: the probability that it is exactly right.
    `unfamiliar`: whether the picture is unlike those that the model was trained on. null: unknown."""

    caption: str
    captions: list[CaptionText]
    confidence: float | None
    unfamiliar: bool | None
    model: str


class LabelShare(BaseModel):
    """A label and its probability."""

    label: str
    probability: float


class LabelAnswer(BaseModel):
    """The likeliest labels, the best first. The probabilities of all labels sum to 1."""

    labels: list[LabelShare]
    model: str


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


class IndexedPicture(BaseModel):
    """A picture of the index. `id`: valid as long as the index has it; `date`: in UTC; `size`: in bytes;
    `is_vector`: it is an SVG file, and `/vector/ID` has it."""

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


class FoundPicture(IndexedPicture):
    """A hit. `score`: cosine with the query; `relevance`: probability that it is right, null if that cannot be told;
    `copies`: its near-duplicates."""

    score: float
    relevance: float | None
    copies: list[IndexedPicture]


class SearchAnswer(BaseModel):
    """Hits, the best first. `more`: there are further ones; `searched`: pictures of the index; `verdict`: whether
    hits look like what the query asked for (`likely`), or that is not sure (`unsure`), or none does (`nothing`);
    `num_likely`: hits of this answer up to the last likely one; `can_tell`: false if relevances cannot be told;
    `facets`: the values of texts among the nearest pictures, of which there are `counted`, in the first answer."""

    hits: list[FoundPicture]
    more: bool
    searched: int
    verdict: Verdict
    num_likely: int
    can_tell: bool
    facets: "list[Facet]"
    counted: int


class PicturesAnswer(BaseModel):
    """Some of `total` pictures, the newest first."""

    total: int
    pictures: list[IndexedPicture]


class Facet(BaseModel):
    """A field to filter by: a text with its most frequent values, or a number or date with its bounds."""

    model_config = ConfigDict(extra="forbid")

    field: str
    kind: Literal["text", "number", "date"]
    values: list[tuple[str | int | float, int]] | None = None
    min: str | int | float | None = None
    max: str | int | float | None = None


class FacetsAnswer(BaseModel):
    """The fields to filter by."""

    facets: list[Facet]


class GroupsAnswer(BaseModel):
    """Some of `total` groups of pictures that look the same."""

    total: int
    groups: list[list[IndexedPicture]]


class InfoAnswer(BaseModel):
    """What the server is. `pictures`: null without an index; `revision`: changes when the index does."""

    title: str
    pictures: int | None
    model: str
    engine: str
    version: str
    revision: str
    can: list[Literal["search", "caption", "explain"]]


class StatusAnswer(BaseModel):
    """The state of the server. `warnings`: what it cannot do, though it is ready."""

    status: str
    model: str | None = None
    max_batch: int | None = None
    warnings: list[str] = []


# --- OpenAPI

_MEANINGS = {
    400: "The request is invalid",
    401: "The key is missing or wrong",
    403: "The name of the host is not allowed",
    404: "There is no such thing",
    408: "The body came too slowly",
    413: "Too many bytes or pixels",
    415: "Not a picture that can be read",
    422: "A key or value is invalid",
    429: "Too many requests; `Retry-After` says when to try again",
    501: "PyTorch is not installed",
    503: "Not ready, or stopping",
    504: "Too busy to answer in time",
}
_ALWAYS = (400, 401, 403, 408, 413, 429, 503, 504)
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}


def answers(model: Any, *statuses: int, streams: bool = False, success: int = 200) -> dict[int | str, dict[str, Any]]:
    """The responses of an endpoint: the model of its answer, and its refusals."""
    refused: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in (*_ALWAYS, *statuses)
    }
    answer: dict[str, Any] = {"description": "The answer"} | ({"model": model} if model is not None else {})
    return {success: answer | ({"content": _EVENTS} if streams else {}), **refused}


def picture_request(model: type[BaseModel], example: Mapping[str, object]) -> dict[str, Any]:
    """The part of an OpenAPI operation that describes a picture with options, see `picture_and_options`.

    Args:
        model: the options.
        example: options beside the picture of a heart.
    """
    schema = model.model_json_schema()
    options, required = schema["properties"], schema.get("required", [])
    parts = {
        "multipart/form-data": {"type": "string", "format": "binary"},
        "application/json": {"type": "string", "description": "the picture, as `data:image/…;base64,…`"},
    }
    content: dict[str, Any] = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
    for kind, image in parts.items():
        content[kind] = {"schema": {"type": "object", "properties": {"image": image, **options}, "required": ["image"]}}
    content["application/json"]["examples"] = {"heart": {"value": {"image": HEART, **example}}}
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": option, "description": option.get("description", "")}
        for name, option in options.items()
    ]
    needed = f" Needed: {', '.join(required)}." if required else ""
    return {
        "parameters": parameters,
        "requestBody": {
            "description": f"The picture, or a form or JSON with it and options.{needed}",
            "content": content,
        },
    }
