"""Muon's precision: whether orthogonalizing in bf16 or in fp32 changes what is learned: `python
benchmarks/muon_precision.py`, a quarter of an hour on one core.

The demo's pretraining, cut to some hundred steps, with every seed in both precisions. Equal seeds share weights and the
order of the data, so their difference is that of the precision. The deviation over seeds says how much chance moves the
same number. Writes `results/muon_precision.json`.
"""

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from machine import parse, parser_of, report

from grr_coca.common.ranks import Ranks
from grr_coca.train.logs import read_metrics
from grr_coca.train.loop import train
from grr_coca.train.recipe import Recipe, load_recipe
from grr_coca.train.setup import new_checkpoint

RECIPE = Path(__file__).parents[1] / "recipes" / "pictograms.yaml"
PRECISIONS = ("fp32", "bf16")
CPU = torch.device("cpu")
LAST = 5
"""Lines of the log, of ten steps each, whose mean is the training loss at the end."""


def main() -> None:
    """Train every seed in both precisions, and compare."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parse(parser)
    full = load_recipe(RECIPE)
    if options.smoke:
        options.steps, options.seeds = 2, 2
        few = str(full.data.val).replace("pictograms", "clipart")
        full = replace(full, data=replace(full.data, train=few, val=few, batch_size=16))
    torch.set_num_threads(1)
    results = {
        precision: [losses(shortened(full, options.steps, seed, precision)) for seed in range(options.seeds)]
        for precision in PRECISIONS
    }
    rows = []
    for name in results["fp32"][0]:
        fp32, bf16 = ([result[name] for result in results[precision]] for precision in PRECISIONS)
        differences = [b - a for a, b in zip(fp32, bf16, strict=True)]
        measured = f"{statistics.fmean(differences):+.4f} (of {statistics.fmean(fp32):.4f})"
        rows += [
            {"what": f"{name}, bf16 less fp32, mean over seeds", "measured": measured, "target": "within the next"},
            {"what": f"{name}, deviation over seeds", "measured": f"{statistics.stdev(fp32):.4f}", "target": ""},
        ]
    report("muon_precision", rows, options.out)


def shortened(full: Recipe, steps: int, seed: int, precision: str) -> Recipe:
    """The demo's pretraining in one precision of Muon."""
    return replace(
        full,
        schedule=replace(full.schedule, steps=steps),
        evaluation=replace(full.evaluation, interval=steps),
        optimizer=replace(full.optimizer, muon_precision=precision),
        precision="fp32",
        seed=seed,
    )


def losses(run: Recipe) -> dict[str, float]:
    """Of training at the end, and of validation."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        train(run, new_checkpoint(run, Ranks.here(CPU)), out, Ranks.here(CPU), lambda *_: None)
        last = read_metrics(out, "train")[-LAST:]
        (val,) = read_metrics(out, "val")
    return {
        "training CoCa loss": statistics.fmean(line["coca"] for line in last),
        "validation CoCa loss": val["coca_loss"],
        "validation perplexity": val["perplexity"],
    }


if __name__ == "__main__":
    main()
