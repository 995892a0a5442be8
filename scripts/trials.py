"""Trials of recipes at equal CPU time, by successive halving (arXiv 1502.07943).

    python scripts/trials.py PLAN.yaml --minutes 30 [--runs FOLDER]

A plan names a recipe, trials that each change some of its keys, and rungs: CPU seconds of training, the shortest first.
Every trial is trained for the first rung. Those with the better half of the scores on `val` are trained for the
second, from the start, since a schedule is made for its length; and so on. Validation does not count.

How many steps a rung holds is measured for all of its trials, one after another, before the first of them is trained.
Let nothing else run meanwhile: a step takes more CPU seconds beside other programs, which share caches and memory. On
another machine, a plan goes on with the seconds of the first: the newest trial is timed again to compare the two.

Each finished run is a row of `PLAN.jsonl` beside the plan. After `--minutes` the run in progress is saved; the same
command goes on. Use one thread: with OMP_NUM_THREADS=1, CPU seconds are those of one core.
"""

import argparse
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from grr_coca.checkpoint import from_pretrained
from grr_coca.errors import UserError
from grr_coca.ranks import Ranks
from grr_coca.structure import from_dict, read_yaml, to_dict
from grr_coca.train.logs import read_metrics
from grr_coca.train.numerics import decide
from grr_coca.train.recipe import (
    CAPTION_SCORES,
    Recipe,
    Score,
    load_recipe,
    save_recipe,
    with_absolute_paths,
)
from grr_coca.train.setup import new_checkpoint, training_batches, training_sources
from grr_coca.train.step import build_trainer, count_tokens

WARM_STEPS, TIMED_STEPS = 4, 40


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan file. `trials`: by name, the keys of the recipe that each changes. `score`: higher is better, unless it is
    a loss or a perplexity."""

    recipe: str
    rungs: tuple[float, ...]
    trials: dict[str, object]
    score: Literal[Score, "text_to_image/R@10"] = "text_to_image/R@1"

    def __post_init__(self) -> None:
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)) or not self.rungs[0] > 0:
            raise UserError(f"rungs {list(self.rungs)} must be CPU seconds in increasing order, such as [480, 1200]")
        if not self.trials:
            raise UserError("trials: none are named")

    @property
    def sign(self) -> int:
        """1 if a higher score is better, else -1."""
        return -1 if self.score.endswith(("_loss", "perplexity")) else 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """A finished run. `cpu_seconds`: of all that the run did, validation and reading included."""

    trial: str
    rung: float
    steps: int
    parameters: int
    cpu_seconds: float
    scores: dict[str, float]


def main() -> int:
    """Train until all is done or the time is over, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0, help="stop after this time")
    parser.add_argument("--runs", type=Path, default=Path("runs/trials"), help="folder of the runs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)  # else the training in progress would go on, without its trial
    try:
        is_done = work(options.plan, options.runs, time.monotonic() + 60 * options.minutes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    print("all is done" if is_done else "the time is over; the same command goes on")
    return 0


def work(path: Path, runs: Path, deadline: float) -> bool:
    """Do what a plan still lacks. Returns True if nothing is left to do.

    Raises:
        UserError: the plan or its recipe is invalid, or a run failed.
    """
    plan = from_dict(Plan, read_yaml(path, "plan"), str(path))
    recipes = {name: changed(path, plan, name) for name in plan.trials}
    for name, recipe in recipes.items():
        if plan.score in CAPTION_SCORES and not recipe.evaluation.num_captions:
            raise UserError(
                f"{path}: score {plan.score} scores captions, and trial '{name}' has none: set evaluation: num_captions"
            )
    log = path.with_suffix(".jsonl")
    for rung in plan.rungs:
        rows = read_rows(log)
        lacking = [
            (trial, runs / path.stem / f"{trial} {rung:g}")
            for trial in candidates(plan, rung, rows)
            if not any(row.trial == trial and row.rung == rung for row in rows)
        ]
        slowness = 1.0
        if not all(_timed(out).exists() for _, out in lacking):
            slowness = seconds_over_rows(recipes, rows)
        for trial, out in lacking:
            if time.monotonic() >= deadline:
                return False
            prepare(recipes[trial], slowness * rung, out)
        for trial, out in lacking:
            row = run(trial, rung, out, deadline)
            if row is None:
                return False
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(to_dict(row)) + "\n")
            print(
                f"{rung:g} s, {trial}: {plan.score} {row.scores[plan.score]:.4f} after {row.steps:,} steps", flush=True
            )
    return True


def changed(path: Path, plan: Plan, trial: str) -> Recipe:
    """The recipe of a trial. Every key that it changes must exist.

    Raises:
        UserError: a key does not exist, or a value is not valid.
    """
    recipe = load_recipe(path.parent / plan.recipe)
    tree, changes = to_dict(recipe), plan.trials[trial]
    if not isinstance(changes, Mapping):
        raise UserError(f"{path}: trials: {trial}: expected keys of the recipe and their values, found {changes!r}")
    for key, value in changes.items():
        *parents, last = str(key).split(".")
        section = tree
        for parent in parents:
            section = section.get(parent)
            if not isinstance(section, dict):
                raise UserError(f"{path}: trials: {trial}: the recipe has no section '{parent}' for '{key}'")
        section[last] = value
    return with_absolute_paths(from_dict(Recipe, tree, f"{path}: trials: {trial}"), path.resolve().parent)


def candidates(plan: Plan, rung: float, rows: Sequence[Row]) -> list[str]:
    """The trials of a rung: all of the first one; then the better half of those of the rung before, rounded up."""
    trials = list(plan.trials)
    for before in plan.rungs[: plan.rungs.index(rung)]:
        scores = {row.trial: plan.sign * row.scores[plan.score] for row in rows if row.rung == before}
        best = sorted((trial for trial in trials if trial in scores), key=lambda trial: -scores[trial])
        trials = [trial for trial in trials if trial in best[: -(-len(trials) // 2)]]
    return trials


def read_rows(log: Path) -> list[Row]:
    """The finished runs of a plan.

    Raises:
        UserError: a line is not one of these rows.
    """
    if not log.exists():
        return []
    rows = []
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(from_dict(Row, json.loads(line), f"{log}: line {number}"))
        except json.JSONDecodeError as error:
            raise UserError(f"{log}: line {number} is not JSON ({error}); remove the line") from error
    return rows


# --- A run


def seconds_over_rows(recipes: Mapping[str, Recipe], rows: Sequence[Row]) -> float:
    """How many times as long a step takes here as where the rows are from; 1 without rows.

    Raises:
        UserError: see `seconds_per_step`.
    """
    known = [row for row in rows if row.trial in recipes]
    return seconds_per_step(recipes[known[-1].trial]) * known[-1].steps / known[-1].rung if known else 1.0


def prepare(recipe: Recipe, seconds: float, out: Path) -> None:
    """Measure how many steps of a recipe these CPU seconds hold, and write the recipe of the run beside its folder
    `out`. What is there already stays.

    Raises:
        UserError: see `seconds_per_step`.
    """
    timed = _timed(out)
    if timed.exists():
        return
    steps = max(1, round(seconds / seconds_per_step(recipe)))
    print(f"{out.name}: {steps:,} steps", flush=True)
    schedule = replace(recipe.schedule, steps=steps, warmup_steps=min(recipe.schedule.warmup_steps, steps))
    evaluation = replace(recipe.evaluation, interval=steps)
    checkpoints = replace(recipe.checkpoints, minutes=5.0, keep_last=1)
    timed.parent.mkdir(parents=True, exist_ok=True)
    save_recipe(replace(recipe, schedule=schedule, evaluation=evaluation, checkpoints=checkpoints), timed)


def run(trial: str, rung: float, out: Path, deadline: float) -> Row | None:
    """Train a prepared trial, or go on with it; None if the time was over before.

    Raises:
        UserError: the training failed.
    """
    if time.monotonic() >= deadline:
        return None
    recipe = load_recipe(_timed(out))
    spent = out.with_name(f"{out.name}.seconds")
    before = _children_seconds() - (float(spent.read_text()) if spent.exists() else 0.0)
    try:
        _train(_timed(out), out, deadline)
    finally:  # also if it is interrupted
        total = _children_seconds() - before
        spent.write_text(f"{total}")
    rows = read_metrics(out, "val") if (out / "metrics.jsonl").exists() else []
    if not rows or rows[-1]["step"] != recipe.schedule.steps:
        return None
    parameters = sum(parameter.numel() for parameter in from_pretrained(out).model.parameters())
    scores = {name: value for name, value in rows[-1].items() if isinstance(value, float)}
    return Row(
        trial=trial,
        rung=rung,
        steps=recipe.schedule.steps,
        parameters=parameters,
        cpu_seconds=round(total, 1),
        scores=scores,
    )


def _timed(out: Path) -> Path:
    """The recipe of a run, with the steps that its rung holds."""
    return out.with_name(f"{out.name}.yaml")


def seconds_per_step(recipe: Recipe) -> float:
    """CPU seconds of a step, reading included: of this process, which must be the only one that works for it.

    Raises:
        UserError: the recipe reads in worker processes, whose time would not count.
    """
    if recipe.data.num_workers:
        raise UserError(f"data: num_workers {recipe.data.num_workers}: the time of workers is not counted; set it to 0")
    recipe = replace(recipe, schedule=replace(recipe.schedule, steps=WARM_STEPS + TIMED_STEPS))
    ranks = Ranks.here(torch.device("cpu"))
    start = new_checkpoint(recipe, ranks)
    pairs, _ = training_sources(recipe)
    trainer = build_trainer(decide(recipe, start.model, ranks.device).for_autos_of(recipe), start, ranks)
    began = 0.0
    for step, batches in enumerate(training_batches(recipe, start, pairs, ranks)):
        trainer.step(batches, count_tokens(batches), step)
        if step == WARM_STEPS - 1:
            began = time.process_time()
    return (time.process_time() - began) / TIMED_STEPS


def _train(recipe: Path, out: Path, deadline: float) -> None:
    """Run `grr-coca pretrain` until it ends or the time is over; then it saves.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, "-m", "grr_coca", "pretrain", str(recipe), "--out", str(out), "--resume"]
    process = subprocess.Popen(command, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
    except KeyboardInterrupt:
        # It saves now. Two signals of one kind would end it at once, and it may have got Ctrl-C or SIGTERM itself.
        process.send_signal(signal.SIGUSR1)
        process.wait()
        raise
    # Minus the signal's number: it was not listening yet, and there was nothing to save.
    if process.returncode not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
        raise UserError(f"{out}: the training ended with exit code {process.returncode}; its message is above")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.exit(main())
