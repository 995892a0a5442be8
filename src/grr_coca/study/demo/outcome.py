"""Results of a demo's arms for its report and `results.json`: metrics, captions, heat maps and searches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from grr_coca.data.loader import make_loader
from grr_coca.data.order import EvaluationOrder
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.checkpoint_metrics import as_dataset
from grr_coca.infer.engine.torch import TorchEngine
from grr_coca.infer.explain import caption_maps
from grr_coca.infer.generate import generate
from grr_coca.model.checkpoint import Checkpoint, from_pretrained
from grr_coca.model.coca import evaluating
from grr_coca.study.demo.plan import arm_names, demo_recipes
from grr_coca.study.ledger import LedgerRow
from grr_coca.study.plan import DemoPlan, showcase_of
from grr_coca.study.running.measured import drawn_examples

_BATCH_SIZE = 64
_NUM_EXPLAINED = 4
_VALIDATION = "val"


@dataclass(frozen=True)
class CaptionedImage:
    """The index of an image in its split, its reference caption and the model's caption."""

    index: int
    truth: str
    caption: str


@dataclass(frozen=True)
class SearchHits:
    """A query and the indices of the most similar images, best first."""

    query: str
    indices: list[int]


@dataclass(frozen=True)
class ExplainedImage:
    """The index of an image in its split, and for each word of the model's caption a heat map of the patches by row."""

    index: int
    words: list[str]
    heat: list[list[list[float]]]


@dataclass(frozen=True)
class Exhibits:
    """What a report shows of a model besides its rows: heat maps, and the images found for each query."""

    heat_maps: list[ExplainedImage]
    searches: list[SearchHits]


@dataclass(kw_only=True)
class ArmResult:
    """The results of an arm. `evaluations`: metrics by `stage/split` and key in the ledger; `seconds`: by stage."""

    preset: str
    parameters: int
    image_encoder_parameters: int
    flops_per_pair: int
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    captions: dict[str, list[CaptionedImage]] = field(default_factory=dict)
    heat_maps: list[ExplainedImage] = field(default_factory=list)
    searches: list[SearchHits] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def make_exhibits(run: Path, showcase: str, queries: tuple[str, ...], num_hits: int) -> Exhibits:
    """Compute the exhibits of a pretrained model.

    Args:
        run: folder of its run.
        showcase: the split, as for `open_source`.
        queries: texts to search for.
        num_hits: number of images for each query.
    """
    checkpoint, source = from_pretrained(run), open_source(showcase)
    return Exhibits(_explain_some(checkpoint, source, _NUM_EXPLAINED), search(checkpoint, source, queries, num_hits))


def arm_results(plan: DemoPlan, rows: Sequence[LedgerRow], exhibits: Sequence[Exhibits]) -> tuple[ArmResult, ArmResult]:
    """The results of both arms of a finished demo, the model first.

    Args:
        plan: the demo.
        rows: all rows of its ledger.
        exhibits: the exhibits of both arms, the model first.
    """
    by_run = {(row.arm, row.stage): row for row in rows}
    first, second = (
        _arm_result(plan, [by_run[name, stage] for stage in demo_recipes(plan)], shown)
        for name, shown in zip(arm_names(plan), exhibits, strict=True)
    )
    return first, second


@torch.inference_mode()
def search(checkpoint: Checkpoint, source: PairSource, queries: Sequence[str], count: int) -> list[SearchHits]:
    """The `count` most similar images of a split for each query."""
    model = checkpoint.model
    dataset = as_dataset(checkpoint, source)
    loader = make_loader(dataset, EvaluationOrder(len(dataset), _BATCH_SIZE), num_workers=0)
    token_ids, lengths = checkpoint.tokenize(queries)
    with evaluating(model):
        images = torch.cat([model.encode_image(batch.images.to(model.device)).embedding for batch in loader])
        texts = model.encode_text(token_ids, lengths)
    best = (texts @ images.T).topk(min(count, len(images)), dim=1).indices.tolist()
    return [SearchHits(query, indices) for query, indices in zip(queries, best, strict=True)]


def _explain_some(checkpoint: Checkpoint, source: PairSource, count: int) -> list[ExplainedImage]:
    """Heat maps for the captions of `count` images that the report captions too."""
    drawn = drawn_examples(source, count)
    decode = checkpoint.preprocess.decode
    images = [decode(source[index].image, source.name(index)) for index in drawn]
    pixels = np.stack([checkpoint.preprocess(image) for image in images])
    generated = generate(TorchEngine(checkpoint.model, checkpoint.preprocess), checkpoint.tokenizer, pixels)
    explained: list[ExplainedImage] = []
    for index, image, (caption, *_) in zip(drawn, images, generated.captions, strict=True):
        maps = caption_maps(checkpoint, checkpoint.pixels(image), caption.token_ids)
        heat = [word_map.heat.tolist() for word_map in maps]
        explained.append(ExplainedImage(index, [word_map.word for word_map in maps], heat))
    return explained


def _arm_result(plan: DemoPlan, rows: Sequence[LedgerRow], shown: Exhibits) -> ArmResult:
    return ArmResult(
        preset=rows[0].arm,
        parameters=rows[0].parameters,
        image_encoder_parameters=rows[0].image_encoder_parameters,
        flops_per_pair=rows[0].flops_per_pair,
        evaluations={
            f"{row.stage}/{split}": metrics
            for row in rows
            for split, metrics in row.metrics.items()
            if split != _VALIDATION
        },
        captions={row.stage: _captions(plan, row) for row in rows},
        heat_maps=shown.heat_maps,
        searches=shown.searches,
        seconds={row.stage: row.seconds for row in rows},
    )


def _captions(plan: DemoPlan, row: LedgerRow) -> list[CaptionedImage]:
    source = open_source(demo_recipes(plan)[row.stage].data.test[showcase_of(plan, row.stage)[0]])
    drawn = drawn_examples(source, len(row.captions))
    return [
        CaptionedImage(index, example.references[0], example.caption)
        for index, example in zip(drawn, row.captions, strict=True)
    ]
