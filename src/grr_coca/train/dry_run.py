"""What a run would take, measured on one batch."""

import itertools
import resource
import sys
import time

import torch

from grr_coca.checkpoint import Checkpoint
from grr_coca.train.optimizer import Optimizers, freeze
from grr_coca.train.recipe import Recipe
from grr_coca.train.run import training_loader, training_sources
from grr_coca.train.step import autocast, resolve_precision, train_step

TIMED_STEPS = 2


def dry_run(recipe: Recipe, start: Checkpoint, device: torch.device) -> str:
    """Train on the first batches, the first untimed, keep nothing, and say what the whole run would take."""
    model = start.model.to(device).train()
    freeze(model, recipe.freeze)
    optimizers = Optimizers(model, recipe.optimizer, recipe.schedule)
    pairs, _ = training_sources(recipe)
    width = start.config.image_encoder.transformer.embed_dim
    precision = autocast(resolve_precision(recipe.precision, device, width), device)
    losses = []
    marks = [time.perf_counter()]
    for step, batch in enumerate(itertools.islice(training_loader(recipe, start, pairs), 1 + TIMED_STEPS)):
        metrics = train_step(model, batch.to(device), optimizers, recipe.losses, precision, step)
        losses.append(float(metrics["coca"]))  # waits for the device
        marks.append(time.perf_counter())
    seconds = (marks[-1] - marks[1]) / (len(marks) - 2) if len(marks) > 2 else marks[-1] - marks[0]
    num_pairs, steps = len(pairs), recipe.schedule.steps
    epochs = steps * recipe.data.batch_size / num_pairs
    parameters = sum(parameter.numel() for parameter in model.parameters())
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
