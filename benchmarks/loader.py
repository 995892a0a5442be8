"""Pairs a second of the loader alone against those of the training step: `python benchmarks/loader.py`.

The demo's corpus, recipe and `tiny` model, one thread. Loader and step take turns, a batch each, so that whatever
else the machine does hits both; the medians are compared. The loader runs in the process itself, without workers. In
the first epoch it decodes each image, as it always does where images are many; a corpus as small as this one then stays
decoded in memory.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from harness import parse, parser_of, report

from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import Batch
from grr_coca.train.recipe import load_recipe
from grr_coca.train.setup import new_checkpoint, training_batches, training_sources
from grr_coca.train.step import Trainer, build_trainer, count_tokens, resolve_precision

ROUNDS, WARM_UP = 12, 2
TARGET = 5.0


def main() -> None:
    """Measure a few batches of the first epoch, and a few of the second."""
    options = parse(parser_of(__doc__))
    torch.set_num_threads(1)
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "pictograms.yaml")
    if options.smoke:
        recipe = replace(recipe, data=replace(recipe.data, train=recipe.data.val, batch_size=16))
    rounds = 1 if options.smoke else ROUNDS
    alone = Ranks.current(torch.device("cpu"))
    start = new_checkpoint(recipe, alone)
    recipe = resolve_precision(recipe, start.model, alone.device).resolve_autos(recipe)
    trainer = build_trainer(recipe, start, alone)
    pairs, _ = training_sources(recipe)
    batches = training_batches(recipe, start, pairs, alone)
    first, stepping = take_turns(batches, trainer, WARM_UP + rounds)
    for _ in range(-(-len(pairs) // recipe.data.batch_size) - WARM_UP - rounds):
        next(batches)
    later, more = take_turns(batches, trainer, rounds)
    step = statistics.median(stepping[WARM_UP:] + more)
    rows = [{"what": f"training step in {recipe.precision}, pairs/s", "measured": round(step), "target": ""}]
    for epoch, rates in (("the first epoch", first[WARM_UP:]), ("later epochs", later)):
        rate = statistics.median(rates)
        rows += [
            {"what": f"loader alone in {epoch}, pairs/s", "measured": round(rate), "target": ""},
            {"what": f"loader / step in {epoch}", "measured": round(rate / step, 2), "target": f">= {TARGET:g}"},
        ]
    report("loader", rows, options.out)


def take_turns(batches: Iterator[list[Batch]], trainer: Trainer, count: int) -> tuple[list[float], list[float]]:
    """Pairs a second of the loader and of the step, for each of `count` batches."""
    loading, stepping = [], []
    for step in range(count):
        began = time.perf_counter()
        (batch,) = next(batches)
        loaded = time.perf_counter()
        trainer.step([batch], count_tokens([batch]), step)
        stepped = time.perf_counter()
        loading.append(len(batch) / (loaded - began))
        stepping.append(len(batch) / (stepped - loaded))
    return loading, stepping


if __name__ == "__main__":
    main()
