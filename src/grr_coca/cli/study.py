"""`grr-coca study`: run, status and report."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.errors import Stopped, UserError
from grr_coca.extras import require_extra
from grr_coca.study.ledger import PLAN_FILE
from grr_coca.yaml_files.read import read_yaml


@dataclass(frozen=True, kw_only=True)
class RunStudy:
    """Run what a study lacks. A study that was stopped goes on with the same command.

    Args:
        plan: YAML file that names arms, seeds, recipes, endpoints and tuning; see studies/.
        out: folder of the ledger, runs.jsonl; if not given, that of PLAN if its name is plan.yaml, else PLAN without
            its suffix.
        runs: folder for the models in training; OUT/runs if not given.
        jobs: runs at a time, a core each.
        shard: do part I of N alone, given as I/N, for several machines; those that share a folder make one ledger.
        only: do this arm alone; give it again for another one.
        keep_models: leave the models in --runs when they have been measured.
        dry_run: tell what is left to do, core-hours and disk on this machine, and end.
    """

    plan: tyro.conf.Positional[Path]
    out: Path | None = None
    runs: Path | None = None
    jobs: int = 1
    shard: str = "1/1"
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    keep_models: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


@dataclass(frozen=True)
class Status:
    """Tell what a study has and what it lacks.

    Args:
        folder: of the ledger.
    """

    folder: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class ReportStudy:
    """Say what a study found, finished or not: results.json, table.md and report.html, from its folder alone.

    Args:
        folder: of the ledger.
        out: folder for the three files; if not given, the study's own, or the folder `study` of a demo; with --over a
            folder `over-ARM` in it.
        over: compare with this arm, and not with the plan's baseline.
    """

    folder: tyro.conf.Positional[Path]
    out: Path | None = None
    over: Annotated[str | None, tyro.conf.arg(metavar="ARM")] = None


def run(
    action: Annotated[
        Annotated[RunStudy, tyro.conf.subcommand("run")]
        | Annotated[Status, tyro.conf.subcommand("status")]
        | Annotated[ReportStudy, tyro.conf.subcommand("report")],
        tyro.conf.arg(name=""),
    ],
) -> int:
    """Compare models over several seeds.

    Args:
        action: what to do.
    """
    if isinstance(action, Status):
        from grr_coca.cli.study_status import print_status

        return print_status(action.folder)
    if isinstance(action, ReportStudy):
        from grr_coca.cli.study_report import report_on

        return report_on(action.folder, action.out, action.over)
    return _run(action)


def _run(action: RunStudy) -> int:
    number, count = _shard(action.shard)
    if action.jobs < 1:
        raise UserError(f"--jobs {action.jobs} is out of range; give 1 or more")
    require_extra("train", "training")
    read_yaml(action.plan, "plan")  # a name that is wrong is told at once

    from grr_coca.cli.study_run import run_with_progress, what_is_left  # late: torch comes with it
    from grr_coca.study.plan import Plan, arm_named, read_plan
    from grr_coca.study.running.agenda import StudyPart
    from grr_coca.study.running.run import Place
    from grr_coca.study.stages import check_recipes, require_precisions

    plan = read_plan(action.plan, Plan)
    check_recipes(plan, action.plan)
    require_precisions(plan, action.plan)
    arms = tuple(arm_named(plan, name).name for name in action.only) or tuple(arm.name for arm in plan.arms)
    out = action.out or (action.plan.parent if action.plan.name == PLAN_FILE else action.plan.with_suffix(""))
    place = Place(out=out, runs=action.runs or out / "runs", keeps_models=action.keep_models)
    part = StudyPart(arms, number, count)
    if action.dry_run:
        print(what_is_left(plan, place, part, action.jobs))
        return 0
    try:
        run_with_progress(plan, place, part, action.jobs)
    except (KeyboardInterrupt, Stopped) as stop:
        code = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        name = signal.Signals(code).name
        print(f"{name}: what was trained is saved, and the same command goes on with it", file=sys.stderr)
        return 128 + code
    return 0


def _shard(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UserError(f"--shard {text}: give I/N, part I of N, such as 1/4")
    return int(first), int(second)
