"""Forecast of the time and memory of a run, measured on its first batches."""

import itertools
import resource
import sys
import time

import torch

from grr_coca.checkpoint import Checkpoint
from grr_coca.evaluate.checkpoint import require_pairs
from grr_coca.ranks import Ranks
from grr_coca.train.recipe import Recipe
from grr_coca.train.run.numerics import decide
from grr_coca.train.run.setup import training_batches, training_sources
from grr_coca.train.step.trainer import build_trainer, count_tokens

TIMED_STEPS = 2


def dry_run(recipe: Recipe, start: Checkpoint, ranks: Ranks) -> str:
    """Train on the first batches, and say what the whole run would take. The first batch is not timed; nothing is
    saved.

    Raises:
        UserError: the run would be refused, by its data or its validation split.
    """
    device = ranks.device
    pairs, val = training_sources(recipe)
    require_pairs(val, recipe.evaluation.batch_size)
    recipe = ranks.on_first(lambda: decide(recipe, start.model, device)).for_autos_of(recipe)
    trainer = build_trainer(recipe, start, ranks)
    losses = []
    marks = [time.perf_counter()]
    for step, batches in enumerate(itertools.islice(training_batches(recipe, start, pairs, ranks), 1 + TIMED_STEPS)):
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
            f"data         {num_pairs:,} pairs, {recipe.data.batch_size} a batch",
            f"steps        {steps:,}, {epochs:.1f} epochs",
            f"peak memory  {_peak_memory(device) / 2**30:.2f} GiB",
            f"time         {seconds:.3f} s a step, {_duration(seconds * steps)} in all, validation not counted",
        ]
    )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
