"""Demo: its plan, the choice of the longest schedule that fits into the available time, its folder, and its results.

| file | content |
|---|---|
| `plan.yaml` | the plan, with the chosen steps and precisions |
| `rows/`, `digests.json`, `showcase/` | the rows and the thumbnails, as in any study |
| `PRESET/STAGE/` | the run of an arm in a stage |
| `table.txt`, `results.json`, `report.md`, `report.html` | the results, written when both arms have finished |
| `figures/`, `exhibits/` | pictures for the report: plots, heat maps, search results |
"""

import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

import grr_coca
from grr_coca.common.dict_to_dataclass import differences, read_yaml
from grr_coca.common.errors import UserError
from grr_coca.common.files import write_bytes_atomic
from grr_coca.common.ranks import Ranks
from grr_coca.data.isolated import decode_image
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.table import format_table
from grr_coca.infer.explain import caption_maps, caption_picture
from grr_coca.model.build import build
from grr_coca.train.recipe import Recipe
from grr_coca.train.setup import new_checkpoint
from grr_coca.train.step import resolve_precision
from grr_coca_study.ledger import DIGESTS_FILE, read_ledger
from grr_coca_study.plan import PLAN_FILE, DemoPlan, find_arm, read_plan, stage_names
from grr_coca_study.report.numbers import split_rows
from grr_coca_study.report.page import FIGURES, PAGE_FILE, REPORT_FILE, RESULTS_FILE, write_study_report
from grr_coca_study.rows import ROWS_FOLDER
from grr_coca_study.running.measured import sample_examples
from grr_coca_study.running.run import StudyFolders, write_plan
from grr_coca_study.running.speed import TrainingSpeed, measure_speed
from grr_coca_study.running.workers import Workers, raise_if_stopped, usable_device
from grr_coca_study.stages import check_recipes, stage_recipe
from grr_coca_study.thumbnails import EXHIBITS, LISTING, SHOWCASE_FOLDER, as_webp, thumbnail


def load_demo(path: Path) -> DemoPlan:
    """Read the plan of a demo, and check its recipes and data.

    Raises:
        UserError: If the plan is missing or invalid, or refers to something that does not exist.
    """
    plan = read_plan(path, DemoPlan)
    has_grid = any(arm.grid or arm.finetune_grid for arm in plan.arms)
    if len(plan.arms) != 2 or len(plan.seeds) != 1 or has_grid:
        raise UserError(
            f"{path}: a demo must have two arms, one seed and no grid; run other plans with `grr-coca study run`"
        )
    if not plan.finetune:
        raise UserError(f"{path}: finetune must not be empty; run other plans with `grr-coca study run`")
    if plan.endpoints.split != "test":
        raise UserError(f"{path}: endpoints: split must be 'test', got '{plan.endpoints.split}'")
    if any(steps < 1 for steps in plan.schedules) or list(plan.schedules) != sorted(set(plan.schedules)):
        raise UserError(
            f"{path}: the keys of schedules must be numbers of steps, at least 1 and in ascending order, got "
            f"{list(plan.schedules)}"
        )
    if plan.num_hits < 1:
        raise UserError(f"{path}: num_hits must be at least 1, got {plan.num_hits}")
    if not plan.queries:
        raise UserError(f"{path}: queries must not be empty")
    check_recipes(plan, path)
    return plan


def arm_names(plan: DemoPlan) -> tuple[str, str]:
    """Return the names of the model and of its baseline."""
    (model,) = (arm.name for arm in plan.arms if arm.name != plan.baseline)
    return model, plan.baseline


def demo_recipes(plan: DemoPlan) -> dict[str, Recipe]:
    """Return the recipes of the first arm by stage, in order."""
    return {stage: stage_recipe(plan, plan.arms[0], stage, plan.seeds[0], {}) for stage in stage_names(plan)}


# --- In a worker process, where the arms run


def with_precisions(plan: DemoPlan) -> DemoPlan:
    """Return the plan with the precisions that are faster on this machine in place of `auto`, for both arms."""
    pretrain = next(iter(demo_recipes(plan).values()))
    assert pretrain.model is not None, "the plan was checked"
    assert pretrain.tokenizer is not None, "the plan was checked"
    numerics = resolve_precision(pretrain, build(pretrain.model.config(pretrain.tokenizer.vocab_size)), usable_device())
    return replace(plan, precision=numerics.precision, muon_precision=numerics.muon_precision)


def measure_arm_speed(plan: DemoPlan, name: str) -> TrainingSpeed:
    """Measure the speed of an arm in pretraining, in a worker process.

    Raises:
        UserError: If the parent process has requested a stop.
    """
    device = usable_device()
    recipe = stage_recipe(plan, find_arm(plan, name), stage_names(plan)[0], plan.seeds[0], {})
    return measure_speed(recipe, new_checkpoint(recipe, Ranks.current(device)), device, raise_if_stopped)


# --- Schedules

_OTHER_SECONDS = 30.0
"""Number of seconds for starting processes, captions, heat maps and the report, on two cores without AVX-512."""
_RESERVE = 1.04
"""Safety factor, because training can be slower than the speed that was measured over some seconds."""


@dataclass(frozen=True)
class Schedule:
    """Number of pretraining steps of a demo.

    Attributes:
        minutes: Expected duration of the complete demo on this machine.
        reached: R@1 on the showcase that these steps reached. None if it was not measured.
    """

    steps: int
    minutes: float
    reached: float | None


def timed_schedules(plan: DemoPlan, speeds: Sequence[TrainingSpeed], seconds_spent: float = 0.0) -> list[Schedule]:
    """Return the schedules of a plan with their expected durations, shortest first.

    Args:
        plan: Plan without `auto`.
        speeds: Training speeds of the arms, measured at the same time. The slower arm determines the durations.
        seconds_spent: Number of seconds that the demo has taken so far.
    """
    step = max(speed.step for speed in speeds)
    evaluation, reading = max(speed.evaluation for speed in speeds), max(speed.reading for speed in speeds)
    pretrain, *finetunes = demo_recipes(plan).values()
    others = sum(recipe.schedule.steps * recipe.data.batch_size for recipe in finetunes) / pretrain.data.batch_size
    read = evaluated = 0
    for recipe in (pretrain, *finetunes):
        read += min(len(open_source(recipe.data.train)), recipe.schedule.steps * recipe.data.batch_size)
        val, tests = (recipe.data.val or recipe.data.train), recipe.data.test.values()
        validations = -(-recipe.schedule.steps // recipe.evaluation.interval)
        evaluated += validations * len(open_source(val)) + sum(len(open_source(test)) for test in tests)
    fixed = seconds_spent + _OTHER_SECONDS + read * reading + evaluated * evaluation
    schedules = plan.schedules or {pretrain.schedule.steps: None}
    return [
        Schedule(steps, (fixed + _RESERVE * step * (steps + others)) / 60, reached)
        for steps, reached in schedules.items()
    ]


def longest_schedule(schedules: Sequence[Schedule], minutes: float) -> Schedule:
    """Return the longest schedule that ends within `minutes`.

    Raises:
        UserError: If even the shortest schedule takes longer. The message states its duration.
    """
    fitting = [schedule for schedule in schedules if schedule.minutes <= minutes]
    if not fitting:
        shortest = schedules[0]
        raise UserError(
            f"--minutes {minutes:g}: the shortest schedule, {shortest.steps:,} steps, takes about "
            f"{shortest.minutes:.1f} minutes on this machine; pass --minutes {int(shortest.minutes) + 1}"
        )
    return fitting[-1]


# --- Folder of the demo

_OUTCOME = ("table.txt", RESULTS_FILE, REPORT_FILE, PAGE_FILE, SHOWCASE_FOLDER, FIGURES, EXHIBITS)


class DemoFolders(StudyFolders):
    """Folders of a demo. Rows and models are in the same folder, runs have readable names, and models are kept."""

    def __init__(self, out: Path) -> None:
        super().__init__(out=out, runs=out, keeps_models=True)

    def folder_of(self, arm: str, seed: int, stage: str, digest: str) -> Path:  # noqa: ARG002
        """Return the folder of a run: `ARM/STAGE`."""
        return self.runs / arm / stage


def read_started_demo(out: Path, plan: DemoPlan, steps: int | None, is_fresh: bool) -> DemoPlan | None:
    """Return the plan of the demo in a folder, with its steps and precisions, or None if a new demo starts in it.

    Args:
        out: Folder, which is created if it does not exist.
        plan: Plan that the command specifies.
        steps: Requested number of steps. None means any number.
        is_fresh: Whether to start a new demo, even if the folder has one.

    Raises:
        UserError: If the folder has other files or cannot be written to, or if it has a demo with another plan (the
            message names the first key that differs) or another number of steps.
    """
    path = out / PLAN_FILE
    with _disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        found = read_yaml(path, "plan") if path.exists() else None
        has_demo = isinstance(found, dict) and "queries" in found
        if not has_demo and any(out.iterdir()):  # producing the rows of a study may have taken days
            raise UserError(f"{out}: contains files that do not belong to a demo; pass another --out")
    if not os.access(out, os.W_OK):
        raise UserError(f"{out}: cannot be written to; pass another --out")
    if is_fresh or not has_demo:
        return None
    earlier = read_plan(path, DemoPlan)
    undecided = replace(earlier, steps=plan.steps, precision=plan.precision, muon_precision=plan.muon_precision)
    for key, expected, found in differences(plan, undecided):
        raise UserError(
            f"{path}: {key} is {found}, not {expected}; replace the demo with --fresh, or pass another --out"
        )
    if steps not in (None, earlier.steps):
        raise UserError(f"{out}: contains a demo with {earlier.steps:,} steps, not {steps:,}; start again with --fresh")
    return earlier


def start_demo(plan: DemoPlan, out: Path) -> None:
    """Start a demo in a folder. An earlier demo is deleted, but all other files are kept.

    Raises:
        UserError: If the folder cannot be written to.
    """
    with _disk_errors(out):
        # The rows are deleted first and the plan last, so that the folder still counts as a demo after an interruption.
        for name in (ROWS_FOLDER, DIGESTS_FILE, *arm_names(plan), *_OUTCOME, PLAN_FILE):
            shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
        write_plan(plan, out)


@contextmanager
def _disk_errors(out: Path, advice: str = "pass another --out") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror}); {advice}") from error


# --- Results

_NUM_EXPLAINED = 4
_HEAT_MAP_DPI = 70


def finish_demo(plan: DemoPlan, out: Path, workers: Workers) -> str:
    """Write the pictures and the report of a demo whose runs have finished, and return the table as text.

    Raises:
        UserError: If an arm diverged, or the disk is full or cannot be written to. The runs are saved.
    """
    ledger, names = read_ledger(out, plan), arm_names(plan)
    if ledger.diverged:
        diverged = ", ".join(f"{row.arm} in {row.stage}" for row in ledger.diverged)
        raise UserError(f"{diverged}: training diverged, so there is nothing to compare; start again with --fresh")
    pretraining = stage_names(plan)[0]
    showcase = str(demo_recipes(plan)[pretraining].data.test[plan.showcase])
    table, folder = format_table(split_rows(plan, ledger), names), out / EXHIBITS
    with _disk_errors(out, "free some space; the same command then continues from what was trained"):
        more = (showcase, plan.queries, plan.num_hits, folder)
        shown = workers.all([workers.submit(write_exhibits, name, out / name / pretraining, *more) for name in names])
        listing = json.dumps(dict(zip(names, shown, strict=True)), indent=1, ensure_ascii=False)
        write_bytes_atomic(folder / LISTING, listing.encode("utf-8", "backslashreplace"))
        write_bytes_atomic(out / "table.txt", f"{table}\n".encode())
        write_study_report(out, out)
    return table


def write_exhibits(
    arm: str, run: Path, showcase: str, queries: Sequence[str], num_hits: int, folder: Path
) -> dict[str, list[dict[str, object]]]:
    """Write a pretrained model's pictures as WebP files, and return their descriptions for the report.

    Args:
        arm: Name of the arm.
        run: Folder of the run.
        showcase: Split, in the form that `open_source` takes.
        queries: Texts to search for.
        num_hits: Number of images for each query.
        folder: Folder for the pictures, to which several models may write at the same time.

    Returns:
        `heat_maps` has, for some of the captioned images, the caption (`truth`), the `words` of the model's caption,
        the `heat` of each word for the patches, row by row, and the name of the `picture`. `searches` has each `query`
        with its `hits`, best first, each with a `caption` and the name of a `picture`.

    Raises:
        OSError: If the folder cannot be written to.
    """
    model, source = grr_coca.load(run, engine="torch"), open_source(showcase)
    folder.mkdir(exist_ok=True)
    images = [model.preprocess.decode(source[index].image, source.name(index)) for index in range(len(source))]
    heat_maps: list[dict[str, object]] = []
    drawn = sample_examples(source, _NUM_EXPLAINED)
    for index, described in zip(drawn, model.describe_many([images[index] for index in drawn]), strict=True):
        pixels, name = model.checkpoint.pixels(images[index]), f"{arm}-{len(heat_maps)}.webp"
        maps = caption_maps(model.checkpoint, pixels, described.captions[0].token_ids)
        words, heat = [word_map.word for word_map in maps], [word_map.heat.tolist() for word_map in maps]
        heat_maps.append({"truth": source.caption(index), "words": words, "heat": heat, "picture": name})
        picture = decode_image(source[index].image, source.name(index))  # at full size, also for SVG files
        png = caption_picture(picture, maps, _HEAT_MAP_DPI)
        write_bytes_atomic(folder / name, as_webp(Image.open(io.BytesIO(png)).convert("RGB")))
    searches: list[dict[str, object]] = []
    best = (-model.similarity(images, queries)).argsort(axis=0, kind="stable")[:num_hits].T.tolist()
    for query, indices in zip(queries, best, strict=True):
        hits = [{"caption": source.caption(index), "picture": f"{index}.webp"} for index in indices]
        searches.append({"query": query, "hits": hits})
        for index in indices:
            write_bytes_atomic(folder / f"{index}.webp", thumbnail(source[index]))
    return {"heat_maps": heat_maps, "searches": searches}
