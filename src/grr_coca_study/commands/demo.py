"""`grr-coca demo`: run the complete comparison in minutes.

Modules that import torch are imported late, so that errors are reported immediately.
"""

import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from grr_coca.cli.flags import Flag
from grr_coca.cli.output import program_args, report_stop
from grr_coca.common.dict_to_dataclass import read_yaml
from grr_coca.common.errors import Interruption, UserError, require_extra

if TYPE_CHECKING:
    from grr_coca_study.demo import Schedule
    from grr_coca_study.plan import DemoPlan
    from grr_coca_study.running.workers import Workers

_DEFAULT_PLAN = Path("recipes/demo.yaml")


def run(
    plan: Annotated[Path, tyro.conf.Positional] = _DEFAULT_PLAN,
    out: Path = Path("runs/demo"),
    minutes: float = 10.0,
    steps: int | None = None,
    fresh: Flag = False,
    dry_run: Flag = False,
) -> int:
    """Pretrain both models, fine-tune them on three domains, measure them, and write a report.

    The speed of this machine determines how long they are pretrained. To continue a stopped demo, run the same command
    again.

    Args:
        plan: YAML file that names arms, recipes and schedules.
        out: folder for runs, table and report.
        minutes: use the longest schedule of the plan that ends within this time.
        steps: pretrain for this number of steps, however long this takes.
        fresh: start again, replacing the demo in --out.
        dry_run: print the schedule that would be used, and end.
    """
    began = time.monotonic()
    _check(plan, minutes, steps)
    from grr_coca_study.commands.study_run import run_with_progress
    from grr_coca_study.demo import DemoFolders, finish_demo, load_demo, read_started_demo, start_demo
    from grr_coca_study.running.workers import worker_processes

    requested = load_demo(plan)
    earlier = None if dry_run else read_started_demo(out, requested, steps, fresh)
    if earlier is not None:
        print(f"{out}: continuing this demo of {earlier.steps:,} steps; to start again, pass --fresh")
    try:
        with worker_processes(min(2, os.cpu_count() or 1)) as workers:
            completed = earlier or _complete_plan(requested, workers, minutes, steps, dry_run, began)
            if dry_run:
                return 0
            if earlier is None:
                start_demo(completed, out)
            run_with_progress(completed, DemoFolders(out), workers, has_bar_of_each_arm=True)
            table = finish_demo(completed, out, workers)
    except (KeyboardInterrupt, Interruption) as stop:
        return report_stop(stop)
    print(f"\n{table}\n\n{_next_commands(completed, plan, out)}")
    return 0


def _check(plan: Path, minutes: float, steps: int | None) -> None:
    if not minutes > 0:
        raise UserError(f"--minutes must be above 0, got {minutes:g}")
    if steps is not None and steps < 1:
        raise UserError(f"--steps must be at least 1, got {steps}")
    if plan == _DEFAULT_PLAN and not plan.exists():
        raise UserError(f"{plan}: no such plan; run the demo in a clone of the project, which also has the corpora")
    require_extra("train", "training")
    require_extra("report", "the report")
    read_yaml(plan, "plan")  # reports a wrong name before torch is imported


def _complete_plan(
    plan: "DemoPlan", workers: "Workers", minutes: float, steps: int | None, dry_run: bool, began: float
) -> "DemoPlan":
    """Complete the plan with the number of steps and the precisions for this machine.

    `began` is the time at which the demo was started, by the monotonic clock.
    """
    from grr_coca_study.demo import arm_names, longest_schedule, measure_arm_speed, timed_schedules, with_precisions

    print("Measuring the speed of this machine …", file=sys.stderr)
    (plan,) = workers.all([workers.submit(with_precisions, plan)])
    if steps is not None and not dry_run:
        return replace(plan, steps=steps)
    # Both arms at the same time, as in training.
    speeds = workers.all([workers.submit(measure_arm_speed, plan, name) for name in arm_names(plan)])
    timed = plan if steps is None else replace(plan, schedules={steps: plan.schedules.get(steps)})
    minutes = minutes if steps is None else math.inf
    schedules = timed_schedules(timed, speeds, time.monotonic() - began)
    chosen = longest_schedule(schedules, minutes)
    step = max(speed.step for speed in speeds)
    print(f"A step takes {step:.2f} s, in {plan.precision}, with Muon in {plan.muon_precision}.")
    print(_table(schedules, chosen, minutes))
    return replace(plan, steps=chosen.steps)


def _table(schedules: Sequence["Schedule"], chosen: "Schedule", minutes: float) -> str:
    """Return one line per schedule, with its time and expected result, in which the selected schedule is marked."""
    lines = []
    for schedule in schedules:
        mark = "→" if schedule is chosen else " "
        reached = "" if schedule.reached is None else f"   R@1 about {schedule.reached:.0%}"
        why = f"   chosen: the longest within {minutes:g} minutes" if schedule is chosen and minutes < math.inf else ""
        lines.append(f"{mark} {schedule.steps:>6,} steps {schedule.minutes:>6.1f} min{reached}{why}")
    return "\n".join(lines)


def _next_commands(plan: "DemoPlan", path: Path, out: Path) -> str:
    """Return the commands to run next. `path` is the plan as given on the command line."""
    from grr_coca_study.demo import arm_names, demo_recipes

    program, recipe = shlex.join(program_args()), shlex.quote(os.path.relpath(plan.pretrain))
    again = shlex.join([str(path), "--out", str(out), "--fresh", "--steps", str(plan.steps)])
    checkpoint = shlex.quote(str(out / arm_names(plan)[0] / Path(plan.pretrain).stem))
    pretrain = next(iter(demo_recipes(plan).values()))
    images, index = shlex.quote(str(pretrain.data.test[plan.showcase])), shlex.quote(str(out.with_name("demo-index")))
    return "\n".join(
        [
            f"Images, captions and searches:   {out / 'report.html'}",
            f"Repeat this demo:                {program} demo {again}",
            f"Caption your own image:          {program} caption --checkpoint {checkpoint} IMAGE.png",
            f"Search its test images:          {program} index {images} --checkpoint {checkpoint} --out {index}",
            f"                                 {program} search {index} {shlex.quote(plan.queries[0])}",
            f"Train on your own pairs:         {program} pretrain {recipe} --data FOLDER_OR_SHARDS",
        ]
    )
