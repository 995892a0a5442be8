"""`grr-coca demo`."""

import json as json_format
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from grr_coca.errors import Stopped, UserError
from grr_coca.extras import require_extra
from grr_coca.train.recipe import read_yaml

if TYPE_CHECKING:
    from grr_coca.study.demo.arm import ArmResult
    from grr_coca.study.demo.plan import DemoPlan
    from grr_coca.study.demo.processes import Arms
    from grr_coca.study.demo.schedule import Schedule

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def run(
    plan: Annotated[Path, tyro.conf.Positional] = Path("recipes/demo.yaml"),
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
        plan: YAML file that names presets, recipes and schedules.
        out: folder for runs, table and report.
        minutes: take the longest schedule of the plan that ends within this time.
        steps: pretrain for this number of steps, however long that takes.
        fresh: start again, and replace the demo in --out.
        dry_run: print the schedule that would be taken, and end.
        json: with --dry-run, print it as JSON.
    """
    began = time.monotonic()
    _check(plan, minutes, steps, dry_run, json)
    from grr_coca.cli.training.opening import opening_lines
    from grr_coca.study.demo.comparison import begin, begun_in, finish, make_folder
    from grr_coca.study.demo.plan import load_plan
    from grr_coca.study.demo.processes import arm_processes

    asked = load_plan(plan)
    if not dry_run:
        make_folder(out, asked)
    begun = None if fresh or dry_run else _begun(begun_in(out, asked), out, steps)
    if begun is None and not dry_run:
        print("\n".join(opening_lines(asked)))
    try:
        with arm_processes() as arms:
            decided = begun or _decide(asked, arms, _Wishes(minutes, steps, dry_run, json, began))
            if dry_run:
                return 0
            if begun is None:
                begin(decided, out)
            results = _train(arms, decided, out)
    except (KeyboardInterrupt, Stopped) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        name = signal.Signals(number).name
        print(f"{name}: what was trained is saved, and the same command goes on with it", file=sys.stderr)
        return 128 + number
    print(f"\n{finish(decided, results, out)}\n\n{_closing_words(decided, out)}")
    return 0


def _check(plan: Path, minutes: float, steps: int | None, dry_run: bool, json: bool) -> None:
    if not minutes > 0:
        raise UserError(f"--minutes {minutes:g} is no time; give more than 0")
    if steps is not None and steps < 1:
        raise UserError(f"--steps {steps} is out of range; give 1 or more")
    if json and not dry_run:
        raise UserError("--json tells what --dry-run finds; give both")
    require_extra("train", "training")
    require_extra("report", "the report")
    read_yaml(plan)  # so that a wrong name is reported at once


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


def _decide(plan: "DemoPlan", arms: "Arms", wishes: _Wishes) -> "DemoPlan":
    """The plan with the number of steps and the precisions for this machine."""
    from grr_coca.study.demo.schedule import choose, timed_schedules

    steps = wishes.steps
    if not wishes.json:
        print("Measuring the pace of this machine …", file=sys.stderr)
    plan = arms.with_numerics(plan)
    if steps is not None and not wishes.dry_run:
        return replace(plan, steps=steps)
    paces = arms.paces(plan)
    timed = plan if steps is None else replace(plan, schedules={steps: plan.schedules.get(steps)})
    minutes = wishes.minutes if steps is None else math.inf
    schedules = timed_schedules(timed, paces, time.monotonic() - wishes.began)
    taken = choose(schedules, minutes)
    numerics = plan.numerics
    if wishes.json:
        found = {"steps": taken.steps, "minutes": round(taken.minutes, 1)}
        print(json_format.dumps({**found, "precision": numerics.precision, "muon_precision": numerics.muon_precision}))
    else:
        step = max(pace.step for pace in paces)
        print(f"A step takes {step:.2f} s, in {numerics.precision}, with Muon in {numerics.muon_precision}.")
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


def _train(arms: "Arms", plan: "DemoPlan", out: Path) -> "tuple[ArmResult, ArmResult]":
    from grr_coca.cli.output.progress import bars
    from grr_coca.study.demo.plan import stages

    total = sum(recipe.schedule.steps for recipe in stages(plan).values())
    try:
        with bars(dict.fromkeys(plan.presets, total)) as shown:
            return arms.run(plan, out, shown.update)
    except (KeyboardInterrupt, Stopped):
        print("stopping: both arms save first", file=sys.stderr)
        raise


def _closing_words(plan: "DemoPlan", out: Path) -> str:
    program, recipe = sys.argv[0], os.path.relpath(plan.pretrain)
    checkpoint = out / plan.presets[0] / Path(plan.pretrain).stem
    return "\n".join(
        [
            f"Pictures, captions and searches: {out / 'report.html'}",
            f"The same once more:              {program} demo --fresh --steps {plan.steps}",
            f"Caption an image of yours:       {program} caption --checkpoint {checkpoint} IMAGE.png",
            f"Train on pairs of yours:         {program} pretrain {recipe} --data FOLDER_OR_SHARDS",
        ]
    )
