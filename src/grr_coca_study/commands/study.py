"""`grr-coca study`: run a plan over several seeds, show its status, and report its findings."""

import itertools
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.flags import Flag
from grr_coca.cli.output import print_line, report_stop
from grr_coca.cli.progress import bars
from grr_coca.common.dict_to_dataclass import read_yaml
from grr_coca.common.errors import Interruption, UserError, require_extra


@dataclass(frozen=True, kw_only=True)
class RunStudy:
    """Execute the missing runs of a study. To continue a stopped study, run the same command again.

    Args:
        plan: YAML file that names arms, seeds, recipes and endpoints; see studies/.
        out: folder of the study, with its rows, which any number of processes can share; if not given, the folder that
            contains PLAN if its name is plan.yaml, else PLAN without its suffix.
        runs: folder for the models in training; OUT/runs if not given.
        jobs: number of runs at a time, one core each.
        only: run only this arm.
        keep_models: keep the models in --runs after they have been measured.
        dry_run: print the remaining work, its core-hours and disk space, and the effects that the plan can detect, and
            end.
    """

    plan: tyro.conf.Positional[Path]
    out: Path | None = None
    runs: Path | None = None
    jobs: int = 1
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    keep_models: Flag = False
    dry_run: Flag = False


@dataclass(frozen=True)
class Status:
    """Count the finished runs of a study by arm and stage, and print the best settings and the runs that do not count.

    Args:
        folder: folder of the study, which contains plan.yaml and rows.
    """

    folder: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class ReportStudy:
    """Write the results of a study, whether finished or not: results.json, report.md with figures, and report.html.

    Args:
        folder: folder of the study, which contains plan.yaml and rows.
        out: folder for the files; if not given, the folder of the study or, with --over, its folder `over-ARM`.
        over: compare with this arm instead of the plan's baseline.
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
        return print_status(action.folder)
    if isinstance(action, ReportStudy):
        return _report(action.folder, action.out, action.over)
    return _run(action)


def _run(action: RunStudy) -> int:
    if action.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {action.jobs}")
    require_extra("train", "training")
    read_yaml(action.plan, "plan")  # reports a wrong name before torch is imported

    from grr_coca_study.commands.study_run import run_with_progress  # lazy import: PyTorch
    from grr_coca_study.plan import Plan, find_arm, folder_of_plan, read_plan, stage_names
    from grr_coca_study.rows import RowFolder
    from grr_coca_study.running.agenda import RemainingWork
    from grr_coca_study.running.dry_run import NUM_MEASURED, dry_run_report
    from grr_coca_study.running.run import StudyFolders
    from grr_coca_study.running.speed import MIN_STEPS, WARM_UP
    from grr_coca_study.running.workers import worker_processes
    from grr_coca_study.stages import check_recipes, require_precisions

    plan = read_plan(action.plan, Plan)
    check_recipes(plan, action.plan)
    require_precisions(plan, action.plan)
    arms = tuple(find_arm(plan, name).name for name in action.only) or tuple(arm.name for arm in plan.arms)
    out = action.out or folder_of_plan(action.plan)
    folders = StudyFolders(out=out, runs=action.runs or out / "runs", keeps_models=action.keep_models)
    _require_folder(out, "--out")
    _require_folder(folders.runs, "--runs")
    if action.dry_run:
        agenda = RemainingWork(plan, folders.folder_of, RowFolder(out).new_rows(), arms)
        agenda.require_sound_points()
        print("Measuring the speed of this machine …", file=sys.stderr)
        num_steps = min(len(stage_names(plan)), NUM_MEASURED) * (WARM_UP + MIN_STEPS)
        done = itertools.count()
        with bars({"speed": num_steps}) as shown:

            def before_step() -> None:
                shown.update("speed", min(next(done), num_steps), "")  # a fast machine uses more steps

            text = dry_run_report(plan, folders, agenda.missing_runs(), action.jobs, before_step)
        print(text)
        return 0
    try:
        with worker_processes(action.jobs) as workers:
            run_with_progress(plan, folders, workers, arms)
    except (KeyboardInterrupt, Interruption) as stop:
        return report_stop(stop)
    return 0


def _require_folder(folder: Path, flag: str) -> None:
    """Check that a folder can be written to. The folder need not exist.

    Raises:
        UserError: If the folder cannot be written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "has no permission to write" if there.is_dir() else "is not a folder"
        raise UserError(f"{folder}: cannot be written to ({there} {why}); pass another {flag}")


def print_status(folder: Path) -> int:
    """Print the number of finished seeds for each arm and stage, the best settings, and the runs that do not count.

    Returns:
        The exit code, 0.

    Raises:
        UserError: If the folder is not a study, or a file in it is invalid.
    """
    if find_spec("yaml") is None:  # the other packages of the extra are not needed
        require_extra("train", "a study's status")
    from grr_coca_study.ledger import read_ledger
    from grr_coca_study.plan import (  # lazy import, so that --help is fast
        arms_tuned_together,
        missing_scores,
        plan_of_folder,
        point_title,
        points_of,
        search_seeds,
        stage_names,
    )

    plan = plan_of_folder(folder)
    ledger = read_ledger(folder, plan)
    unscored = {(row.arm, row.seed, row.stage): missing_scores(plan, row) for row in ledger.rows}
    unfinished = {key for key, scores in unscored.items() if scores} | ledger.missing_runs
    unfinished |= {(row.arm, row.seed, row.stage) for row in ledger.diverged}
    stages = stage_names(plan)
    width = max(len(arm.name) for arm in plan.arms)
    seeds = f"{len(plan.seeds)} seed{'' if len(plan.seeds) == 1 else 's'}"
    print(f"{'arm':<{width}}  {'  '.join(stages)}   finished of {seeds}")
    for arm in plan.arms:
        counts = [sum((arm.name, seed, stage) not in unfinished for seed in plan.seeds) for stage in stages]
        print(
            f"{arm.name:<{width}}  {'  '.join(f'{n:>{len(stage)}}' for n, stage in zip(counts, stages, strict=True))}"
        )
    for arm, stage in itertools.product(plan.arms, stages):
        points = points_of(plan, arm, stage)
        if len(points) > 1 and arm in arms_tuned_together(plan, arm):
            tried = sum((row.arm, row.stage) == (arm.name, stage) for row in ledger.tried)
            print(f"tried for {arm.name}, {stage}: {tried} of {len(points) * len(search_seeds(plan))} points and seeds")
    for (name, stage), point in ledger.chosen.items():
        print(f"best for {name}, {stage}: {point_title(point)}")
    for (name, seed, stage), scores in unscored.items():
        if scores:
            print(f"{name}, seed {seed}, {stage}: lacks {', '.join(scores)}; repeat with `grr-coca study run`")
    for row in ledger.diverged:
        print(f"{row.arm}, seed {row.seed}, {row.stage}: diverged, which is the result of this run")
    for note in ledger.notes:
        print(note)
    return 0


def _report(folder: Path, out: Path | None, over: str | None) -> int:
    """Write the report of the study in `folder`, and print its answer.

    If `out` is None, the default location is used.
    """
    require_extra("study", "a study's report")
    from grr_coca_study.plan import plan_of_folder, with_baseline

    out = out or (folder if over is None else folder / f"over-{over}")
    with_baseline(plan_of_folder(folder), over)  # a missing study or arm is reported before any file is written
    from grr_coca_study.report.page import PAGE_FILE, write_study_report  # lazy imports: matplotlib and SciPy

    try:
        out.mkdir(parents=True, exist_ok=True)
        answer = write_study_report(folder, out, over)
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror or error}); pass another --out") from error
    print_line(answer)
    print_line(f"report: {out / PAGE_FILE}")
    return 0
