"""The demo's training step, `tiny` on one core: what it spends outside of matrix products and attention, and what
the two arms of the demo cost each other: `python benchmarks/demo_step.py`.

Recipe, corpus and both models are the demo's. The share of matrix products and attention is the time that the profiler
counts in their kernels over the time of a step without the profiler, which slows small operations alone. The arms train
one after the other, each alone on the machine, and then side by side, a core each, in turns of several rounds. Writes
`results/demo_step.json`.
"""

import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import parse, parser_of, report
from workers import Worker, is_worker, serve

RECIPE = Path(__file__).parents[1] / "recipes" / "pictograms.yaml"
ARMS = ("grr_coca", "baseline_coca")
BATCHES, WARM_UP, LIMIT = 4, 3, 600
MATRIX_KERNELS = (
    "aten::mm",
    "aten::addmm",
    "aten::_addmm_activation",
    "aten::bmm",
    "aten::baddbmm",
    "aten::linear",
    "aten::mkldnn_linear",
    "aten::convolution",
    "aten::_convolution",
    "aten::mkldnn_convolution",
    "aten::convolution_backward",
    "aten::scaled_dot_product_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    "aten::_softmax",  # of attention as plain products: no other is there
    "aten::_softmax_backward_data",
    "mkldnn::_linear_pointwise",
    "mkl::_mkl_linear",
)


class Arm:
    """A preset that trains on the demo's first batches, again and again, on one core."""

    def __init__(self, setup: dict[str, Any]) -> None:
        os.sched_setaffinity(0, {setup["core"]})
        from dataclasses import replace

        import torch

        from grr_coca.common.ranks import Ranks
        from grr_coca.train.numerics import decide
        from grr_coca.train.recipe import load_recipe
        from grr_coca.train.setup import new_checkpoint, training_batches, training_sources
        from grr_coca.train.step import build_trainer

        torch.set_num_threads(1)
        recipe = load_recipe(RECIPE)
        recipe = replace(recipe, model=replace(recipe.model, preset=setup["preset"]))
        ranks = Ranks.here(torch.device("cpu"))
        start = new_checkpoint(recipe, ranks)
        recipe = decide(recipe, start.model, ranks.device).for_autos_of(recipe)
        self.trainer = build_trainer(recipe, start, ranks)
        loader = training_batches(recipe, start, training_sources(recipe)[0], ranks)
        self.batches = [next(loader) for _ in range(BATCHES)]
        self.done = 0
        self.about = {
            "batch": recipe.data.batch_size,
            "precision": recipe.precision,
            "muon_precision": recipe.optimizer.muon_precision,
        }

    def steps(self, count: int) -> dict[str, list[float]]:
        """Seconds of each."""
        return {"seconds": [self._step() for _ in range(count)]}

    def kernels(self, count: int) -> dict[str, Any]:
        """Seconds a step in matrix products and attention, and the names of what counted."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            self.steps(count)
        counted = [event for event in profiler.key_averages() if event.key in MATRIX_KERNELS]
        seconds = sum(event.self_cpu_time_total for event in counted) / 1e6 / count
        return {"seconds": seconds, "names": [event.key for event in counted]}

    def _step(self) -> float:
        from grr_coca.train.step import count_tokens

        batches = self.batches[self.done % BATCHES]
        began = time.perf_counter()
        self.trainer.step(batches, count_tokens(batches), self.done)
        self.done += 1
        return time.perf_counter() - began


def start_arm(preset: str, core: int) -> Worker:
    """Started and warm."""
    arm = Worker(preset, "demo_step.py", {"preset": preset, "core": core}, environment={"OMP_NUM_THREADS": "1"})
    arm.ask(LIMIT, what="steps", count=WARM_UP)
    return arm


def main() -> None:
    """Measure on the first two cores that this process may use."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each arm in a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parse(parser)
    if options.smoke:
        options.steps = options.rounds = 1
    if not hasattr(os, "sched_setaffinity"):
        sys.exit("demo_step: this system does not bind a process to a core; Linux does")
    cores = sorted(os.sched_getaffinity(0))
    arms = [start_arm(preset, core) for preset, core in zip(ARMS, (cores[0], cores[-1]), strict=True)]
    outside = {arm.name: share_outside(arm, options.steps) for arm in arms}
    alone: dict[str, list[float]] = {name: [] for name in ARMS}
    together: dict[str, list[float]] = {name: [] for name in ARMS}
    with ThreadPoolExecutor(len(arms)) as pool:
        for _ in range(options.rounds):
            for arm in arms:
                alone[arm.name] += train(arm, options.steps)
            for arm, seconds in zip(arms, pool.map(lambda arm: train(arm, options.steps), arms), strict=True):
                together[arm.name] += seconds
    for arm in arms:
        arm.close()
    report("demo_step", rows(outside, alone, together, arms[0].about["batch"]), options.out)


def train(arm: Worker, count: int) -> list[float]:
    """Seconds of each step."""
    return arm.ask(LIMIT, what="steps", count=count)["seconds"]


def share_outside(arm: Worker, count: int) -> float:
    """Share of a step's time outside of matrix products and attention."""
    whole = statistics.median(train(arm, count))
    kernels = arm.ask(LIMIT, what="kernels", count=count)
    print(f"{arm.name}: {kernels['seconds']:.3f} of {whole:.3f} s in {', '.join(kernels['names'])}", file=sys.stderr)
    return 1 - kernels["seconds"] / whole


def rows(
    outside: dict[str, float], alone: dict[str, list[float]], together: dict[str, list[float]], batch: int
) -> list[dict[str, object]]:
    """What is reported."""
    table: list[dict[str, object]] = []
    for name in ARMS:
        one, two = (statistics.median(seconds[name]) for seconds in (alone, together))
        table += [
            {"what": f"{name}, outside of matrix products", "measured": f"{outside[name]:.0%}", "target": "<= 35%"},
            {"what": f"{name}, pairs/s alone on a core", "measured": round(batch / one), "target": ""},
            {"what": f"{name}, pairs/s beside the other", "measured": round(batch / two), "target": ""},
            {"what": f"{name}, speed beside the other", "measured": f"{one / two:.2f} x", "target": ""},
        ]
    return table


if __name__ == "__main__":
    if is_worker():
        serve(Arm, ("steps", "kernels"))
    else:
        main()
