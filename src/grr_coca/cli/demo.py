"""`grr-coca demo`."""

import json as json_format
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from grr_coca.cli.output import called_as
from grr_coca.errors import Stopped, UserError
from grr_coca.extras import require_extra
from grr_coca.yaml_files.read import read_yaml

if TYPE_CHECKING:
    from grr_coca.study.demo.outcome import ArmResult
    from grr_coca.study.demo.plan import Schedule
    from grr_coca.study.plan import DemoPlan
    from grr_coca.study.running.workers import Workers

DEFAULT_PLAN = Path("recipes/demo.yaml")
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def run(
    plan: Annotated[Path, tyro.conf.Positional] = DEFAULT_PLAN,
    out: Path = Path("runs/demo"),
    minutes: float = 10.0,
    steps: int | None = None,
    fresh: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
) -> int:
    """Run the whole comparison: pretrain both models, fine-tune them on three domains, measure them, write a report.

    The pace of this machine decides how long they are pretrained. The same command continues a demo that was stopped.

    Args:
        plan: YAML file that names arms, recipes and schedules.
        out: folder for runs, table and report.
        minutes: take the longest schedule of the plan that ends within this time.
        steps: pretrain for this number of steps, however long that takes.
        fresh: start again, and replace the demo in --out.
        dry_run: print the schedule that would be taken, and end.
        json: with --dry-run, print it as JSON.
    """
    began = time.monotonic()
    _check(plan, minutes, steps, dry_run, json)
    from grr_coca.cli.demo_pages import opening_lines
    from grr_coca.study.demo.arms import begin, begun_in, finish, make_folder
    from grr_coca.study.demo.plan import load_demo
    from grr_coca.study.running.workers import worker_processes

    asked = load_demo(plan)
    if not dry_run:
        make_folder(out, asked)
    begun = None if fresh or dry_run else _begun(begun_in(out, asked), out, steps)
    if begun is None and not dry_run:
        print("\n".join(opening_lines(asked)))
    try:
        with worker_processes(min(2, os.cpu_count() or 1)) as workers:
            decided = begun or _decide(asked, workers, _Wishes(minutes, steps, dry_run, json, began))
            if dry_run:
                return 0
            if begun is None:
                begin(decided, out)
            results = _train(workers, decided, out)
    except (KeyboardInterrupt, Stopped) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        name = signal.Signals(number).name
        print(f"{name}: what was trained is saved, and the same command goes on with it", file=sys.stderr)
        return 128 + number
    print(f"\n{finish(decided, results, out)}\n\n{_closing_words(decided, plan, out)}\n", flush=True)
    from grr_coca.cli.demo_pages import closing_lines

    for line in closing_lines(decided, _first_checkpoint(decided, out), out):
        print(line)
    return 0


def _check(plan: Path, minutes: float, steps: int | None, dry_run: bool, json: bool) -> None:
    if not minutes > 0:
        raise UserError(f"--minutes {minutes:g} is no time; give more than 0")
    if steps is not None and steps < 1:
        raise UserError(f"--steps {steps} is out of range; give 1 or more")
    if json and not dry_run:
        raise UserError("--json tells what --dry-run finds; give both")
    if plan == DEFAULT_PLAN and not plan.exists():
        raise UserError(f"{plan}: no such plan here; run the demo in a clone of the project, which has its corpora too")
    require_extra("train", "training")
    require_extra("report", "the report")
    read_yaml(plan, "plan")  # so that a wrong name is reported at once


def _begun(begun: "DemoPlan | None", out: Path, steps: int | None) -> "DemoPlan | None":
    """The demo to continue, if there is one."""
    if begun is None:
        return None
    if steps not in (None, begun.steps):
        raise UserError(f"{out}: holds a demo of {begun.steps:,} steps, not {steps:,}; start anew by --fresh")
    print(f"{out} holds this demo, of {begun.steps:,} steps: it goes on (--fresh starts anew)")
    return begun


class _Wishes(NamedTuple):
    """The options of the command line, and when the demo began, by the monotonic clock."""

    minutes: float
    steps: int | None
    dry_run: bool
    json: bool
    began: float


def _decide(plan: "DemoPlan", workers: "Workers", wishes: _Wishes) -> "DemoPlan":
    """The plan with the number of steps and the precisions for this machine."""
    from grr_coca.study.demo.arms import arm_paces, decide_precisions
    from grr_coca.study.demo.plan import choose, timed_schedules

    steps = wishes.steps
    if not wishes.json:
        print("Measuring the pace of this machine …", file=sys.stderr)
    plan = decide_precisions(plan, workers)
    if steps is not None and not wishes.dry_run:
        return replace(plan, steps=steps)
    paces = arm_paces(plan, workers)
    timed = plan if steps is None else replace(plan, schedules={steps: plan.schedules.get(steps)})
    minutes = wishes.minutes if steps is None else math.inf
    schedules = timed_schedules(timed, paces, time.monotonic() - wishes.began)
    taken = choose(schedules, minutes)
    if wishes.json:
        found = {"steps": taken.steps, "minutes": round(taken.minutes, 1)}
        print(json_format.dumps({**found, "precision": plan.precision, "muon_precision": plan.muon_precision}))
    else:
        step = max(pace.step for pace in paces)
        print(f"A step takes {step:.2f} s, in {plan.precision}, with Muon in {plan.muon_precision}.")
        print(_table(schedules, taken, minutes))
    return replace(plan, steps=taken.steps)


def _table(schedules: Sequence["Schedule"], taken: "Schedule", minutes: float) -> str:
    """One line for each schedule, with its time and expected result. The one that is taken is marked."""
    lines = []
    for schedule in schedules:
        mark = "→" if schedule is taken else " "
        reached = "" if schedule.reached is None else f"   R@1 about {schedule.reached:.0%}"
        why = f"   taken: the longest within {minutes:g} minutes" if schedule is taken and minutes < math.inf else ""
        lines.append(f"{mark} {schedule.steps:>6,} steps {schedule.minutes:>6.1f} min{reached}{why}")
    return "\n".join(lines)


def _train(workers: "Workers", plan: "DemoPlan", out: Path) -> "tuple[ArmResult, ArmResult]":
    from grr_coca.cli.progress import bars
    from grr_coca.study.demo.arms import run_demo
    from grr_coca.study.demo.plan import arm_names, demo_recipes

    total = sum(recipe.schedule.steps for recipe in demo_recipes(plan).values())
    try:
        with bars(dict.fromkeys(arm_names(plan), total)) as shown:
            return run_demo(plan, out, workers, shown.update)
    except (KeyboardInterrupt, Stopped):
        print("stopping: both arms save first", file=sys.stderr)
        raise


def _first_checkpoint(plan: "DemoPlan", out: Path) -> Path:
    from grr_coca.study.demo.plan import arm_names

    return out / arm_names(plan)[0] / Path(plan.pretrain).stem


def _closing_words(plan: "DemoPlan", path: Path, out: Path) -> str:
    """What to do next; `path` is that of the plan as it was asked for."""
    program, recipe = shlex.join(called_as()), shlex.quote(os.path.relpath(plan.pretrain))
    again = shlex.join([str(path), "--out", str(out), "--fresh", "--steps", str(plan.steps)])
    checkpoint = shlex.quote(str(_first_checkpoint(plan, out)))
    return "\n".join(
        [
            f"Pictures, captions and searches: {out / 'report.html'}",
            f"The same once more:              {program} demo {again}",
            f"Caption an image of yours:       {program} caption --checkpoint {checkpoint} IMAGE.png",
            f"Train on pairs of yours:         {program} pretrain {recipe} --data FOLDER_OR_SHARDS",
        ]
    )
