"""Forecast of a run (`--dry-run`): its time and memory, measured on its first batches."""

import itertools
import sys
import time

import torch

from grr_coca.common.ranks import Ranks
from grr_coca.evaluate.split import require_pairs
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.train.recipe import Recipe
from grr_coca.train.setup import open_teacher, training_batches, training_sources
from grr_coca.train.step import build_trainer, count_tokens, resolve_precision

NUM_TIMED_STEPS = 2


def forecast(recipe: Recipe, start: Checkpoint, ranks: Ranks) -> str:
    """Return a forecast of a run's time and memory as text, measured by training on its first batches.

    The first batch is not timed, unless it is the only one. Nothing is saved, but the weights of `start` are changed.
    All ranks must call this function.

    Raises:
        UserError: If the data, the validation split or the teacher of the run cannot be used, or the recipe does not
            match the model.
    """
    device = ranks.device
    pairs, val = training_sources(recipe)
    require_pairs(val, recipe.evaluation.batch_size)
    if (teacher := recipe.teacher) is not None:
        ranks.run_on_first(lambda: len(open_teacher(teacher, pairs)))
    recipe = ranks.run_on_first(lambda: resolve_precision(recipe, start.model, device)).resolve_autos(recipe)
    trainer = build_trainer(recipe, start, ranks)
    losses = []
    marks = [time.perf_counter()]
    for step, batches in enumerate(
        itertools.islice(training_batches(recipe, start, pairs, ranks), 1 + NUM_TIMED_STEPS)
    ):
        num_tokens = int(ranks.sum(torch.tensor(count_tokens(batches), device=device)))
        losses.append(trainer.step(batches, num_tokens, step)["coca"])
        marks.append(time.perf_counter())
    seconds = (marks[-1] - marks[1]) / (len(marks) - 2) if len(marks) > 2 else marks[-1] - marks[0]
    num_pairs, steps = len(pairs), recipe.schedule.steps
    epochs = steps * recipe.data.batch_size / num_pairs
    parameters = sum(parameter.numel() for parameter in start.model.parameters())
    return "\n".join(
        [
            f"model        {start.preset}, {parameters:,} parameters, {device.type}",
            f"first loss   {losses[0]:.3f}",
            f"data         {num_pairs:,} pairs, {recipe.data.batch_size} per batch",
            f"steps        {steps:,}, {epochs:.1f} epochs",
            f"peak memory  {_peak_memory(device)}",
            f"time         {seconds:.3f} s per step, {_duration(seconds * steps)} in total, without validation",
        ]
    )


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        try:
            import resource
        except ImportError:
            return "unknown on this system"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{peak / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
