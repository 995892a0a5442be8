"""What each combination of the parts costs in time: `python benchmarks/arms.py`, five minutes, on one core of an
idle machine.

All arms of the primary study take turns, one training step each, on the same batches of its recipe, in fp32. So what
slows the machine for a while slows all of them alike. Then they take turns to embed images with the fast layers. An
arm's ratio is that of its time to Baseline CoCa's in the same turn: the median over the turns, and the quartiles.
Writes `results/arms.json` and `.md`.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from machine import parse, parser_of, report

from grr_coca.common.ranks import Ranks
from grr_coca.infer.fast.model_copy import fast_copy
from grr_coca.study.plan import Arm, Plan, read_plan
from grr_coca.study.report.answer import arm_titles
from grr_coca.study.stages import stage_recipe
from grr_coca.train.setup import new_checkpoint, training_batches, training_sources
from grr_coca.train.step import build_trainer, count_tokens

PLAN = Path(__file__).parents[1] / "studies" / "primary" / "plan.yaml"
STAGE = "pictograms"
BATCHES, WARM_UP = 4, 2
SMOKE_ARM = "grr_coca"
"""Beside the baseline, in the smallest form."""
EMBEDDED = 64
"""Images that are embedded at once."""
Act = Callable[[int], None]
"""Does something once; is told which time it is."""


def training_step(plan: Plan, arm: Arm) -> Act:
    """A training step of an arm."""
    recipe = stage_recipe(plan, arm, STAGE, 0, {})
    ranks = Ranks.here(torch.device("cpu"))
    start = new_checkpoint(recipe, ranks)
    trainer = build_trainer(recipe, start, ranks)
    loader = training_batches(recipe, start, training_sources(recipe)[0], ranks)
    batches = [next(loader) for _ in range(BATCHES)]
    numbers = [count_tokens(batch) for batch in batches]

    def act(turn: int) -> None:
        trainer.step(batches[turn % BATCHES], numbers[turn % BATCHES], turn)

    return act


def embedding(plan: Plan, arm: Arm) -> Act:
    """The embedding of a batch of images by an arm, all patches seen."""
    start = new_checkpoint(stage_recipe(plan, arm, STAGE, 0, {}), Ranks.here(torch.device("cpu")))
    model = fast_copy(start.model)
    size = start.config.image_encoder.image_size
    pixels = torch.randn(EMBEDDED, 3, size, size)

    @torch.inference_mode()
    def act(_: int) -> None:
        model.encode_image(pixels)

    return act


def seconds_in_turn(acts: Mapping[str, Act], turns: int) -> dict[str, list[float]]:
    """What each takes in each turn, warm. Every turn begins with another one."""
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    names = list(acts)
    for turn in range(WARM_UP + turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            acts[name](turn)
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def over(seconds: list[float], baseline: list[float]) -> str:
    """The ratio to the baseline in the same turn: median, and the quartiles of the turns."""
    low, middle, high = statistics.quantiles((own / other for own, other in zip(seconds, baseline, strict=True)), n=4)
    return f"{middle:.2f} × ({low:.2f}–{high:.2f})"


def main() -> None:
    """Measure on one core."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=30, help="training steps of each arm that are measured")
    parser.add_argument("--embeddings", type=int, default=60, help="batches of images that each arm embeds")
    options = parse(parser)
    torch.set_num_threads(1)
    plan = read_plan(PLAN, Plan)
    if options.smoke:
        options.steps = options.embeddings = 2  # quartiles take two
        plan = replace(plan, arms=tuple(arm for arm in plan.arms if arm.name in (plan.baseline, SMOKE_ARM)))
    titles = arm_titles(plan)
    training = seconds_in_turn({arm.name: training_step(plan, arm) for arm in plan.arms}, options.steps)
    embedded = seconds_in_turn({arm.name: embedding(plan, arm) for arm in plan.arms}, options.embeddings)
    step, image = (statistics.median(seconds[plan.baseline]) for seconds in (training, embedded))
    rows: list[dict[str, object]] = [
        {
            "arm": titles[arm.name],
            f"training step, over {step:.2f} s": over(training[arm.name], training[plan.baseline]),
            f"image embedded, over {1000 * image / EMBEDDED:.2f} ms": over(embedded[arm.name], embedded[plan.baseline]),
        }
        for arm in plan.arms
    ]
    report("arms", rows, options.out)
    (options.out / "arms.md").write_text(as_table(rows), encoding="utf-8")


def as_table(rows: list[dict[str, object]]) -> str:
    """Rows in Markdown, numbers to the right."""
    heads = list(rows[0])
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *([str(row[head]) for head in heads] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
