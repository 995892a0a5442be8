"""What came out of a demo: the rows of each arm, as its report and `results.json` have them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from grr_coca.data.sources.open import open_source
from grr_coca.study.demo.exhibits import Exhibits
from grr_coca.study.demo.plan import arm_names, demo_recipes
from grr_coca.study.demo.showcase import CaptionedImage, ExplainedImage, SearchHits
from grr_coca.study.ledger import LedgerRow
from grr_coca.study.plan.folder import DemoPlan
from grr_coca.study.running.measured import drawn_examples

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
