"""Pairs a second of the loader alone against those of the training step: `python benchmarks/loader.py`.

The demo's corpus, recipe and `tiny` model, one thread. Loader and step take turns, a batch each, so that whatever
else the machine does hits both; the medians are compared. The loader runs in the process itself, without workers.
"""

import statistics
import time
from pathlib import Path

import torch
from machine import report

from grr_coca.ranks import Ranks
from grr_coca.train.recipe import load_recipe
from grr_coca.train.run.setup import new_checkpoint, training_batches, training_sources
from grr_coca.train.step.trainer import build_trainer, count_tokens

ROUNDS, WARM_UP = 12, 2
TARGET = 5.0


def main() -> None:
    """Measure a few batches."""
    torch.set_num_threads(1)
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "pictograms.yaml")
    alone = Ranks.here(torch.device("cpu"))
    start = new_checkpoint(recipe, alone)
    trainer = build_trainer(recipe, start, alone)
    pairs, _ = training_sources(recipe)
    batches = training_batches(recipe, start, pairs, alone)
    loading, stepping = [], []
    for step in range(WARM_UP + ROUNDS):
        began = time.perf_counter()
        (batch,) = next(batches)
        loaded = time.perf_counter()
        trainer.step([batch], count_tokens([batch]), step)
        stepped = time.perf_counter()
        loading.append(len(batch) / (loaded - began))
        stepping.append(len(batch) / (stepped - loaded))
    loader, step_ = (statistics.median(rates[WARM_UP:]) for rates in (loading, stepping))
    rows = [
        {"what": "loader alone, pairs/s", "measured": round(loader), "target": ""},
        {"what": "training step, pairs/s", "measured": round(step_), "target": ""},
        {"what": "loader / step", "measured": round(loader / step_, 2), "target": f">= {TARGET:g}"},
    ]
    report("loader", rows)


if __name__ == "__main__":
    main()
