"""What a report shows of a model: where it looks in some images, and the images it finds for some texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from grr_coca.checkpoint import Checkpoint
from grr_coca.data.loader import make_loader
from grr_coca.data.order import EvaluationOrder
from grr_coca.data.sources.pairs import PairSource
from grr_coca.data.sources.views import Subset
from grr_coca.evaluate.checkpoint import as_dataset
from grr_coca.explain import caption_maps
from grr_coca.generate import generate
from grr_coca.model.coca import evaluating
from grr_coca.study.running.measured import drawn_examples

BATCH_SIZE = 64


@dataclass(frozen=True)
class CaptionedImage:
    """An image of a source by index, its true caption and the model's."""

    index: int
    truth: str
    caption: str


@dataclass(frozen=True)
class SearchHits:
    """A text and the indices of the images most like it, best first."""

    query: str
    indices: list[int]


@dataclass(frozen=True)
class ExplainedImage:
    """An image of a source by index, and for each word of its caption a heat map of the patches, row by row."""

    index: int
    words: list[str]
    heat: list[list[list[float]]]


def explain_some(checkpoint: Checkpoint, source: PairSource, count: int) -> list[ExplainedImage]:
    """Where the model looks in the first `count` of the images that are captioned."""
    drawn = drawn_examples(source, count)
    dataset = as_dataset(checkpoint, Subset(source, drawn))
    explained: list[ExplainedImage] = []
    for batch in make_loader(dataset, EvaluationOrder(len(drawn), BATCH_SIZE), num_workers=0):
        generated = generate(checkpoint.model, checkpoint.tokenizer, batch.images)
        for pixels, (caption, *_) in zip(batch.images, generated.captions, strict=True):
            maps = caption_maps(checkpoint, pixels, caption.token_ids)
            heat = [word_map.heat.tolist() for word_map in maps]
            explained.append(ExplainedImage(drawn[len(explained)], [word_map.word for word_map in maps], heat))
    return explained


@torch.inference_mode()
def search(checkpoint: Checkpoint, source: PairSource, queries: Sequence[str], count: int) -> list[SearchHits]:
    """The `count` images of a source that are most like each text."""
    model = checkpoint.model
    dataset = as_dataset(checkpoint, source)
    loader = make_loader(dataset, EvaluationOrder(len(dataset), BATCH_SIZE), num_workers=0)
    token_ids, lengths = checkpoint.tokenize(queries)
    with evaluating(model):
        images = torch.cat([model.encode_image(batch.images.to(model.device)).embedding for batch in loader])
        texts = model.encode_text(token_ids, lengths)
    best = (texts @ images.T).topk(min(count, len(images)), dim=1).indices.tolist()
    return [SearchHits(query, indices) for query, indices in zip(queries, best, strict=True)]
