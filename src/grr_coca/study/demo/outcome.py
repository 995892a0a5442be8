"""What came out of a demo: the rows of each arm, as its report and `results.json` have them.

What a report shows of a model: where it looks in some images, and the images it finds for some texts.

What a demo's report shows of each arm besides its rows: where it looks, and what it finds for some texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from grr_coca.checkpoint import Checkpoint, from_pretrained
from grr_coca.data.loader import make_loader
from grr_coca.data.order import EvaluationOrder
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import Subset
from grr_coca.evaluate.checkpoint import as_dataset
from grr_coca.explain import caption_maps
from grr_coca.generate import generate
from grr_coca.model.coca import evaluating
from grr_coca.study.demo.plan import arm_names, demo_recipes
from grr_coca.study.ledger import LedgerRow
from grr_coca.study.plan import DemoPlan
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


NUM_EXPLAINED = 4


@dataclass(frozen=True)
class Exhibits:
    """Heat maps of some images, and the images found for each query."""

    heat_maps: list[ExplainedImage]
    searches: list[SearchHits]


def make_exhibits(run: Path, showcase: str, queries: tuple[str, ...], num_hits: int) -> Exhibits:
    """Those of a pretrained model.

    Args:
        run: the folder of its run.
        showcase: the split, as `open_source` takes it.
        queries: texts to search for.
        num_hits: images shown of each.
    """
    checkpoint, source = from_pretrained(run), open_source(showcase)
    return Exhibits(explain_some(checkpoint, source, NUM_EXPLAINED), search(checkpoint, source, queries, num_hits))


VALIDATION = "val"


@dataclass(kw_only=True)
class ArmResult:
    """One arm. `evaluations`: metrics under the ledger's names, by `stage/split`; `seconds`: by stage."""

    preset: str
    parameters: int
    image_encoder_parameters: int
    flops_per_pair: int
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    captions: dict[str, list[CaptionedImage]] = field(default_factory=dict)
    heat_maps: list[ExplainedImage] = field(default_factory=list)
    searches: list[SearchHits] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def arm_results(plan: DemoPlan, rows: Sequence[LedgerRow], exhibits: Sequence[Exhibits]) -> tuple[ArmResult, ArmResult]:
    """Both arms of a demo that has ended, the model first.

    Args:
        plan: the demo.
        rows: all rows of its ledger.
        exhibits: of both arms, the model's first.
    """
    by_run = {(row.arm, row.stage): row for row in rows}
    first, second = (
        _arm_result(plan, [by_run[name, stage] for stage in demo_recipes(plan)], shown)
        for name, shown in zip(arm_names(plan), exhibits, strict=True)
    )
    return first, second


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
            if split != VALIDATION
        },
        captions={row.stage: _captions(plan, row) for row in rows},
        heat_maps=shown.heat_maps,
        searches=shown.searches,
        seconds={row.stage: row.seconds for row in rows},
    )


def _captions(plan: DemoPlan, row: LedgerRow) -> list[CaptionedImage]:
    tests = demo_recipes(plan)[row.stage].data.test
    source = open_source(tests.get(plan.showcase) or tests[plan.endpoints.split])
    drawn = drawn_examples(source, len(row.captions))
    return [
        CaptionedImage(index, example.references[0], example.caption)
        for index, example in zip(drawn, row.captions, strict=True)
    ]
