"""Dry run: the runs, core-hours and disk space that a study still needs on this machine, and the effects that it can
detect.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import torch

from grr_coca.common.ranks import Ranks
from grr_coca.data.sources.open import open_source
from grr_coca.model.anatomy import flops_of_pairs, num_parameters
from grr_coca.model.config import CoCaConfig
from grr_coca.train.recipe import Recipe
from grr_coca.train.setup import new_checkpoint
from grr_coca_study.plan import Arm, Plan, find_arm, points_of, scores_captions, stage_names
from grr_coca_study.running.agenda import RunGroup
from grr_coca_study.running.run import StudyFolders
from grr_coca_study.running.speed import TrainingSpeed, measure_speed
from grr_coca_study.running.stage import caption_lengths, step_flops
from grr_coca_study.running.workers import usable_device
from grr_coca_study.stages import stage_recipe

NUM_MEASURED = 2
"""Maximum number of stages whose speed is measured."""
_BYTES_PER_PARAMETER = 12
"""Number of checkpoint bytes per parameter: the weights, and both moments of AdamW."""
_CHECKPOINTS_PER_JOB = 3
"""Number of checkpoints: the pretrained model from which fine-tunings start, the newest one of the run, and the next
one while it is being written."""
_BYTES_PER_ROW = 20_000


def dry_run_report(
    plan: Plan, folders: StudyFolders, missing: Counter[RunGroup], num_jobs: int, before_step: Callable[[], None]
) -> str:
    """Return the table of a dry run, with lines on time, detectable effects and disk space.

    The baseline's speed is measured for a few seconds in each of the first `NUM_MEASURED` stages, with one thread, and
    scaled by FLOPs for all other arms. Pairs are read in this process, because each worker process of a data loader
    would need as much memory as this process. PyTorch then keeps using one thread.

    Args:
        plan: Plan of the study.
        folders: Folders of the study.
        missing: Numbers of missing trials and runs.
        num_jobs: Number of models that are trained at the same time.
        before_step: Function that is called before each step of a measurement.
    """
    torch.set_num_threads(1)  # as in a worker process
    stages, baseline, device = stage_names(plan), find_arm(plan, plan.baseline), usable_device()
    model = new_checkpoint(stage_recipe(plan, baseline, stages[0], 0, {}), Ranks.current(device))
    hours: dict[str, float] = defaultdict(float)
    speeds: dict[str, TrainingSpeed] = {}
    for stage in stages:
        known = stage_recipe(plan, baseline, stage, 0, {})
        # All fine-tunings are about as fast as the first, and the speed does not depend on the weights.
        if len(speeds) < NUM_MEASURED:
            alone = replace(known, data=replace(known.data, num_workers=0))
            speeds[stage] = speed = measure_speed(alone, model, device, before_step)
        lengths = caption_lengths(model, open_source(known.data.val or known.data.train))
        for (kind, name, of), count in missing.items():
            if of == stage:
                recipe = stage_recipe(plan, find_arm(plan, name), stage, 0, {}, is_trial=kind == "trial")
                config = _config(plan, find_arm(plan, name))
                scaled = TrainingSpeed(
                    speed.step * step_flops(recipe, config, lengths) / step_flops(known, model.config, lengths),
                    speed.reading,
                    speed.evaluation * flops_of_pairs(config, lengths) / flops_of_pairs(model.config, lengths),
                )
                hours[name] += count * _seconds(recipe, scaled, kind == "run", scores_captions(plan)) / 3600

    width = max(len(arm.name) for arm in plan.arms)
    lines = [f"{'arm':<{width}}  trials  runs  core-hours"]
    for name in (arm.name for arm in plan.arms if arm.name in hours):
        trials, runs = (sum(missing[kind, name, stage] for stage in stages) for kind in ("trial", "run"))
        lines.append(f"{name:<{width}}  {trials:>6}  {runs:>4}  {hours[name]:>10.2f}")
    for stage, speed in speeds.items():
        lines.append(f"a step of {stage}: {speed.step:.2f} s ({plan.baseline}, one core)")
    total = sum(hours.values())
    lines.append(f"in all {total:.1f} core-hours: {total / num_jobs:.1f} hours with --jobs {num_jobs}")
    return "\n".join([*lines, *power_line(plan), *_describe_disk_use(plan, folders, missing, num_jobs)])


def _config(plan: Plan, arm: Arm) -> CoCaConfig:
    recipe = stage_recipe(plan, arm, stage_names(plan)[0], 0, {})
    assert recipe.model is not None, "the plan was checked"
    assert recipe.tokenizer is not None, "the plan was checked"
    return recipe.model.config(recipe.tokenizer.vocab_size)


def _seconds(recipe: Recipe, speed: TrainingSpeed, is_run: bool, captions: bool) -> float:
    """Return the duration of a stage in seconds. Captioning a split takes about as long as computing its losses."""
    schedule, data = recipe.schedule, recipe.data
    read = min(len(open_source(data.train)), schedule.steps * data.batch_size)
    val = len(open_source(data.val or data.train)) * (1 + -(-schedule.steps // recipe.evaluation.interval))
    tests = sum(len(open_source(path)) for path in data.test.values()) if is_run else 0
    evaluated = val + tests * (2 if captions else 1)
    return schedule.steps * speed.step + read * speed.reading + evaluated * speed.evaluation


def _describe_disk_use(plan: Plan, folders: StudyFolders, missing: Counter[RunGroup], num_jobs: int) -> list[str]:
    first, *others = stage_names(plan)
    has_choice = any(len(points_of(plan, arm, first)) > 1 for arm in plan.arms)
    # The pretrained models of an arm are kept until the best point of its grid is known.
    counts = (count for (_, _, stage), count in missing.items() if stage == first)
    kept = max(counts, default=0) if others and has_choice else 0
    largest = max(num_parameters(_config(plan, arm)) for arm in plan.arms)
    needed = largest * _BYTES_PER_PARAMETER * (_CHECKPOINTS_PER_JOB * num_jobs + kept)
    free = shutil.disk_usage(
        next(path for path in (folders.runs, *folders.runs.absolute().parents) if path.exists())
    ).free
    lines = [
        f"disk: up to {needed / 1e9:.1f} GB in {folders.runs}, where {free / 1e9:.0f} GB are free, and about "
        f"{missing.total() * _BYTES_PER_ROW / 1e6:.1f} MB for the rows"
    ]
    if needed > free:
        lines.append(f"the disk is too small: pass --runs a folder with {needed / 1e9:.1f} GB of free space")
    return lines


def power_line(plan: Plan) -> list[str]:
    """Return a line about the effects that a plan can detect.

    The result is empty if the plan has no seeds, or if SciPy (from the extra `study`) is not installed.
    """
    if not plan.seeds or find_spec("scipy") is None:
        return []
    from grr_coca_study.statistics import min_seeds, smallest_detectable_effect  # lazy import: SciPy

    num_seeds, num_endpoints = len(plan.seeds), len(plan.endpoints.primary)
    counts = f"{num_seeds} seed{'' if num_seeds == 1 else 's'} and {num_endpoints} primary endpoint"
    counts += "" if num_endpoints == 1 else "s"
    needed = min_seeds(num_endpoints)
    if num_seeds < needed:
        return [f"power: with {counts}, no endpoint is called better or worse: this requires at least {needed} seeds"]
    smallest = smallest_detectable_effect(num_seeds, num_endpoints)
    return [
        f"power: with {counts}, a true change of {smallest:.1f} standard deviations over seeds is called better or "
        "worse in four studies of five"
    ]
