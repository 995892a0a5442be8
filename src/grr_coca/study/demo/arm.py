"""One arm of a comparison: a preset goes through pretraining, fine-tuning and evaluation."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from grr_coca.checkpoint import Checkpoint, from_pretrained
from grr_coca.checkpoint_files import read_json
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.pairs import PairSource, Subset
from grr_coca.evaluate.split import Evaluation
from grr_coca.files import write_whole
from grr_coca.ranks import Ranks
from grr_coca.study.anatomy import count_parameters, flops_per_pair
from grr_coca.study.demo.plan import DemoPlan, stages
from grr_coca.study.demo.showcase import CaptionedImage, ExplainedImage, SearchHits, caption_some, explain_some, search
from grr_coca.train.recipe import Recipe
from grr_coca.train.run.loop import evaluate, train
from grr_coca.train.run.setup import new_checkpoint
from grr_coca.train.survival.resume import resume_point

WITHOUT = " without "
NUM_EXPLAINED = 4
SECONDS_FILE = "seconds.json"

OnProgress = Callable[[str, int], None]
"""Called with the stage's name and the steps done in it."""


@dataclass(kw_only=True)
class ArmResult:
    """All that a report needs to know of one arm. Splits are named `stage/split`; `seconds` are per stage."""

    preset: str
    parameters: int
    image_encoder_parameters: int
    flops_per_pair: int
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    captions: dict[str, list[CaptionedImage]] = field(default_factory=dict)
    heat_maps: list[ExplainedImage] = field(default_factory=list)
    searches: list[SearchHits] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def run_arm(plan: DemoPlan, preset: str, out: Path, device: torch.device, on_progress: OnProgress) -> ArmResult:
    """Train and evaluate one preset by the plan; its runs lie in `out/STAGE`. Runs that are there go on.

    Raises:
        UserError: a recipe, the data or the disk is at fault, or a run that is there is of another recipe.
        Stopped: a signal asked for it; the run is saved.
    """
    (first, pretrain), *finetunes = stages(plan).items()
    pretrain = _with_preset(pretrain, preset)
    checkpoint = new_checkpoint(pretrain, Ranks.here(device))
    result = ArmResult(
        preset=preset,
        parameters=count_parameters(checkpoint.model),
        image_encoder_parameters=count_parameters(checkpoint.model.image_encoder),
        flops_per_pair=flops_per_pair(checkpoint.config),
    )
    checkpoint = _stage(first, pretrain, checkpoint, out, device, on_progress, result)
    showcase = open_source(pretrain.data.test[plan.showcase])
    result.evaluations[f"{first}/{plan.showcase}{WITHOUT}{', '.join(plan.without)}"] = evaluate(
        checkpoint, _without(showcase, plan.without), pretrain
    )
    result.captions[first] = caption_some(checkpoint, showcase, plan.num_captions)
    result.heat_maps = explain_some(checkpoint, showcase, NUM_EXPLAINED)
    result.searches = search(checkpoint, showcase, plan.queries, plan.num_hits)
    for name, recipe in finetunes:
        start = from_pretrained(out / first, device)
        tuned = _stage(name, recipe, start, out, device, on_progress, result)
        result.captions[name] = caption_some(tuned, open_source(recipe.data.test["test"]), plan.num_captions // 3)
    return result


def _stage(
    name: str,
    recipe: Recipe,
    start: Checkpoint,
    out: Path,
    device: torch.device,
    on_progress: OnProgress,
    result: ArmResult,
) -> Checkpoint:
    folder = out / name
    point = resume_point(folder, recipe)
    if point is not None:
        start = from_pretrained(point, device)
    with _stopwatch(folder / SECONDS_FILE):
        trained = train(recipe, start, folder, device, lambda done, _: on_progress(name, done), point)
    result.seconds[name] = _seconds(folder / SECONDS_FILE)
    for split, path in recipe.data.test.items():
        result.evaluations[f"{name}/{split}"] = evaluate(trained, open_source(path), recipe)
    return trained


@contextmanager
def _stopwatch(path: Path) -> Iterator[None]:
    """Add the seconds of this context to those in a file, however it ends."""
    began, before = time.monotonic(), _seconds(path)
    try:
        yield
    finally:
        if path.parent.is_dir():
            write_whole(path, json.dumps({"seconds": before + time.monotonic() - began}).encode())


def _seconds(path: Path) -> float:
    return float(read_json(path)["seconds"]) if path.exists() else 0.0


def _with_preset(recipe: Recipe, preset: str) -> Recipe:
    assert recipe.model is not None
    return replace(recipe, model=replace(recipe.model, preset=preset))


def _without(source: PairSource, words: tuple[str, ...]) -> Subset:
    kept = [i for i in range(len(source)) if not any(word in source.caption(i) for word in words)]
    return Subset(source, kept)
