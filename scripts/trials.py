"""Trials of recipes at equal CPU time, by successive halving (arXiv 1502.07943).

    python scripts/trials.py PLAN.yaml --minutes 30 [--runs FOLDER]

A plan names a recipe, trials that each change some of its keys, and rungs: CPU seconds of training, the shortest first.
Every trial is trained for the first rung. Those with the better half of the scores on `val` are trained for the
second, from the start, since a schedule is made for its length; and so on. Validation does not count. A trial that
diverges does not go on.

How many steps a rung holds is measured before the first of its trials is trained. A step takes more CPU seconds beside
other programs, which share caches and memory. So the trials take turns of a few steps, and all are slowed alike. A plan
goes on with the seconds of its first rows, on another machine too: trials that have rows are timed beside the others,
to compare the two.

Each finished run is a row of `PLAN.jsonl` beside the plan. After `--minutes` the run in progress is saved; the same
command goes on. Use one thread: with OMP_NUM_THREADS=1, CPU seconds are those of one core.
"""

import argparse
import json
import logging
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from grr_coca.common.dict_to_dataclass import from_dict, read_yaml, to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.ranks import Ranks
from grr_coca.data.sources.base import PairSource
from grr_coca.data.tokenizer import Tokenizer
from grr_coca.model.checkpoint import Checkpoint, from_pretrained
from grr_coca.study.stages import with_settings
from grr_coca.train.logs import LOG_FILE, read_metrics
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

ROUNDS, STEPS_A_TURN = 10, 4
"""All trials are timed in turns of this many steps, in this many rounds; a round before them warms up."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan file. `trials`: by name, the keys of the recipe that each changes. `score`: higher is better, unless it is
    a loss or a perplexity."""

    recipe: str
    rungs: tuple[float, ...]
    trials: dict[str, dict[str, object]]
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
    """A finished run. `cpu_seconds`: of all that the run did, validation and reading included. A run that `diverged`,
    since its losses were not finite, has no scores."""

    kind: Literal["run", "diverged"] = "run"
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
        trials = candidates(plan, rung, rows)
        if not trials:
            raise UserError(f"{path}: all trials diverged; give them a lower optimizer.lr")
        done = {row.trial for row in rows if row.rung == rung}
        lacking = {trial: runs / path.stem / f"{trial} {rung:g}" for trial in trials if trial not in done}
        if lacking and time.monotonic() >= deadline:
            return False
        prepare(recipes, lacking, rung, rows)
        for trial, out in lacking.items():
            row = run(trial, rung, out, deadline)
            if row is None:
                return False
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(to_dict(row)) + "\n")
            result = (
                f"{plan.score} {row.scores[plan.score]:.4f} after {row.steps:,} steps" if row.scores else "diverged"
            )
            print(f"{rung:g} s, {trial}: {result}", flush=True)
    return True


def changed(path: Path, plan: Plan, trial: str) -> Recipe:
    """The recipe of a trial. Every key that it changes must exist.

    Raises:
        UserError: a key does not exist, or a value is not valid.
    """
    recipe = with_settings(load_recipe(path.parent / plan.recipe), plan.trials[trial], f"{path}: trials: {trial}")
    return with_absolute_paths(recipe, path.resolve().parent)


def candidates(plan: Plan, rung: float, rows: Sequence[Row]) -> list[str]:
    """The trials of a rung: all of the first one; then the better half of those of the rung before, rounded up, without
    any that diverged."""
    trials = list(plan.trials)
    for before in plan.rungs[: plan.rungs.index(rung)]:
        measured = [row for row in rows if row.rung == before and row.kind == "run"]
        scores = {row.trial: plan.sign * row.scores[plan.score] for row in measured}
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


def prepare(recipes: Mapping[str, Recipe], lacking: Mapping[str, Path], rung: float, rows: Sequence[Row]) -> None:
    """Measure how many steps of each trial a rung holds, and write the recipe of each run beside its folder. What is
    there already stays.

    Args:
        recipes: of all trials.
        lacking: by trial, the folders of the runs that are to be trained.
        rung: CPU seconds, where the rows are from.
        rows: the finished runs. Where their steps take twice the seconds, a rung has twice the seconds.

    Raises:
        UserError: a run was prepared with other keys of its trial; see also `seconds_per_step`.
    """
    new = [trial for trial, out in lacking.items() if not _timed(out).exists()]
    for trial, out in lacking.items():
        prepared = None if trial in new else load_recipe(_timed(out))
        if prepared is not None and prepared != _of_steps(recipes[trial], prepared.schedule.steps):
            raise UserError(
                f"{_timed(out)}: is of other keys than those of trial '{trial}' now; give the trial another name, or "
                f"remove this file and {out}"
            )
    if not new:
        return
    known = {row.trial: row for row in rows if row.trial in recipes}
    newest = [row.trial for row in rows if row.trial in known][-1:]
    seconds = seconds_per_step({trial: recipes[trial] for trial in dict.fromkeys([*new, *newest])})
    slowness = [seconds[trial] * row.steps / row.rung for trial, row in known.items() if trial in seconds] or [1.0]
    for trial in new:
        out = lacking[trial]
        steps = max(1, round(statistics.median(slowness) * rung / seconds[trial]))
        print(f"{out.name}: {steps:,} steps", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        save_recipe(_of_steps(recipes[trial], steps), _timed(out))


def _of_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe of a run of so many steps, with one validation at its end."""
    return replace(
        recipe,
        schedule=replace(recipe.schedule, steps=steps, warmup_steps=min(recipe.schedule.warmup_steps, steps)),
        evaluation=replace(recipe.evaluation, interval=steps),
        checkpoints=replace(recipe.checkpoints, minutes=5.0, keep_last=1),
    )


def run(trial: str, rung: float, out: Path, deadline: float) -> Row | None:
    """Train a prepared trial, or go on with it; None if the time was over before.

    Raises:
        UserError: the training failed, and did not diverge.
    """
    if time.monotonic() >= deadline:
        return None
    recipe = load_recipe(_timed(out))
    spent = out.with_name(f"{out.name}.seconds")
    before = _children_seconds() - (float(spent.read_text()) if spent.exists() else 0.0)
    try:
        code = _train(_timed(out), out, deadline)
    finally:  # also if it is interrupted
        total = _children_seconds() - before
        spent.write_text(f"{total}")
    # Minus the signal's number: it was not listening yet, and there was nothing to save.
    has_failed = code not in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
    if has_failed and not _gave_up(out, recipe):
        raise UserError(f"{out}: the training ended with exit code {code}; its message is above")
    last = read_metrics(out, "val")[-1:] if (out / LOG_FILE).exists() else []
    if not has_failed and (not last or last[0]["step"] != recipe.schedule.steps):
        return None
    scores = {name: value for line in last for name, value in line.items() if isinstance(value, float)}
    has_diverged = has_failed or not all(map(math.isfinite, scores.values()))
    ranks = Ranks.here(torch.device("cpu"))
    model = (new_checkpoint(recipe, ranks) if has_diverged else from_pretrained(out)).model
    return Row(
        kind="diverged" if has_diverged else "run",
        trial=trial,
        rung=rung,
        steps=recipe.schedule.steps,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        cpu_seconds=round(total, 1),
        scores={} if has_diverged else scores,
    )


def _gave_up(out: Path, recipe: Recipe) -> bool:
    """True if the log of a run ends with as many skipped steps in a row as end a training: it diverged."""
    limit = recipe.health.max_skipped
    events = read_metrics(out, "events")[-limit:] if (out / LOG_FILE).exists() else []
    skipped = [event["step"] for event in events if event["event"] == "not finite"]
    return len(skipped) == limit and skipped[-1] - skipped[0] == limit - 1


def _timed(out: Path) -> Path:
    """The recipe of a run, with the steps that its rung holds."""
    return out.with_name(f"{out.name}.yaml")


def seconds_per_step(recipes: Mapping[str, Recipe]) -> dict[str, float]:
    """CPU seconds of a step of each trial, reading included: of this process, which must be the only one that works for
    it. The speed of a machine changes from minute to minute, so trials are compared within each round.

    Raises:
        UserError: a trial reads in worker processes, whose time would not count.
    """
    for trial, recipe in recipes.items():
        if recipe.data.num_workers:
            raise UserError(
                f"trial '{trial}': data: num_workers {recipe.data.num_workers}: the time of workers is not counted; "
                "set it to 0"
            )
    turns = [_turns(recipe, *started) for recipe, started in zip(recipes.values(), _started(recipes), strict=True)]
    seconds = np.array([[next(turn) for turn in turns] for _ in range(1 + ROUNDS)])[1:] / STEPS_A_TURN
    levels = seconds.mean(axis=1, keepdims=True)
    return dict(zip(recipes, (np.median(levels) * np.median(seconds / levels, axis=0)).tolist(), strict=True))


def _started(recipes: Mapping[str, Recipe]) -> Iterator[tuple[Checkpoint, PairSource]]:
    """A new model of each trial, and its pairs. Equal pairs and tokenizers are made once, since there may be 100,000s
    of captions."""
    pairs: dict[object, PairSource] = {}
    tokenizers: dict[object, Tokenizer] = {}
    for recipe in recipes.values():
        paths = (recipe.data.train, recipe.data.val, *recipe.data.mix)
        start = new_checkpoint(recipe, Ranks.here(torch.device("cpu")), tokenizers.get((paths, recipe.tokenizer)))
        tokenizers[paths, recipe.tokenizer] = start.tokenizer
        if paths not in pairs:
            pairs[paths], _ = training_sources(recipe)
        yield start, pairs[paths]


def _turns(recipe: Recipe, start: Checkpoint, pairs: PairSource) -> Iterator[float]:
    """Train, and yield the CPU seconds of each turn of `STEPS_A_TURN` steps."""
    recipe = replace(recipe, schedule=replace(recipe.schedule, steps=STEPS_A_TURN * (1 + ROUNDS)))
    ranks = Ranks.here(torch.device("cpu"))
    trainer = build_trainer(decide(recipe, start.model, ranks.device).for_autos_of(recipe), start, ranks)
    all_batches = enumerate(training_batches(recipe, start, pairs, ranks))
    for _ in range(1 + ROUNDS):
        began = time.process_time()
        for step, batches in islice(all_batches, STEPS_A_TURN):
            trainer.step(batches, count_tokens(batches), step)
        yield time.process_time() - began


def _train(recipe: Path, out: Path, deadline: float) -> int:
    """Run `grr-coca pretrain` until it ends or the time is over; then it saves. Returns its exit code."""
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
    return process.returncode


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.exit(main())
