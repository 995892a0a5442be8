"""Runs a demo: trains both arms side by side, a process each, and keeps everything in one folder.

| file | content |
|---|---|
| `plan.yaml` | the plan, with the steps and precisions that were chosen |
| `rows/`, `digests.json`, `showcase/` | the rows and the thumbnails, as in any study |
| `PRESET/STAGE/` | the run of an arm in a stage |
| `table.txt`, `results.json`, `report.md`, `report.html` | the results, written when both arms have finished |
| `figures/`, `exhibits/` | pictures of the report: plots, heat maps, images that were found |
| `index/` | a search index of the showcase, written at the end |
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from grr_coca.common.dict_to_dataclass import differences, read_yaml
from grr_coca.common.errors import UserError
from grr_coca.common.files import write_whole
from grr_coca.common.ranks import Ranks
from grr_coca.evaluate.table import format_table
from grr_coca.study.demo.plan import arm_names, demo_recipes, with_precisions
from grr_coca.study.exhibits import Exhibits, make_exhibits, write_exhibits
from grr_coca.study.ledger import DIGESTS_FILE, Ledger, read_ledger
from grr_coca.study.plan import EARLIER_LEDGER, PLAN_FILE, DemoPlan, arm_named, read_plan, stage_names
from grr_coca.study.report.numbers import study_results
from grr_coca.study.report.page import FIGURES, PAGE_FILE, REPORT_FILE, RESULTS_FILE, write_study_report
from grr_coca.study.report.tables import split_rows
from grr_coca.study.rows import ROWS_FOLDER
from grr_coca.study.running.agenda import Agenda, Task
from grr_coca.study.running.expectation import Pace, measure_pace
from grr_coca.study.running.run import Place, Study, Watch, write_plan
from grr_coca.study.running.workers import Workers, raise_if_stopped, usable_device
from grr_coca.study.stages import stage_recipe
from grr_coca.study.thumbnails import EXHIBITS, SHOWCASE_FOLDER
from grr_coca.train.setup import new_checkpoint

OUTCOME = ("table.txt", RESULTS_FILE, REPORT_FILE, PAGE_FILE)
INDEX_FOLDER = "index"


def begun_in(out: Path, plan: DemoPlan) -> DemoPlan | None:
    """The plan of the demo in a folder, with its steps and precisions; None if the folder is empty.

    Raises:
        UserError: the folder has a demo of another plan (names the first key that differs), or one without a plan.
    """
    path = out / PLAN_FILE
    if (out / EARLIER_LEDGER).exists():
        raise UserError(f"{out}: has a demo of earlier code; replace it by --fresh, or give another --out")
    if not path.exists():
        if any(out.iterdir()):
            raise UserError(f"{out}: has a demo without its {PLAN_FILE}; replace it by --fresh, or give another --out")
        return None
    begun = read_plan(path, DemoPlan)
    undecided = replace(begun, steps=plan.steps, precision=plan.precision, muon_precision=plan.muon_precision)
    for key, wanted, found in differences(plan, undecided):
        raise UserError(f"{path}: {key} is {found}, not {wanted}; replace the demo by --fresh, or give another --out")
    return begun


def make_folder(out: Path, plan: DemoPlan) -> None:
    """Create the folder of a demo, or check that it contains only files of a demo.

    Raises:
        UserError: it has other files, or cannot be written to.
    """
    folders = {*arm_names(plan), SHOWCASE_FOLDER, INDEX_FOLDER, FIGURES, EXHIBITS}
    known = {*folders, PLAN_FILE, ROWS_FOLDER, EARLIER_LEDGER, f".{EARLIER_LEDGER}.lock", DIGESTS_FILE, *OUTCOME}
    with _disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        strange = sorted(entry.name for entry in out.iterdir() if entry.name not in known)
        holds_study = _holds_study(out)
    if strange:
        raise UserError(f"{out}: has {strange[0]}, which does not belong to a demo; give another --out")
    if holds_study:
        raise UserError(f"{out}: has a study, which is not a demo; give another --out")
    if not os.access(out, os.W_OK):
        raise UserError(f"{out}: cannot be written to; give another --out")


def _holds_study(out: Path) -> bool:
    """True if the folder has the rows of a study, which may have taken days."""
    path = out / PLAN_FILE
    if not path.exists():
        return (out / EARLIER_LEDGER).exists() or (out / ROWS_FOLDER).exists()
    plan = read_yaml(path, "plan")
    return isinstance(plan, dict) and "queries" not in plan


def begin(plan: DemoPlan, out: Path) -> None:
    """Start a demo in a folder; an earlier one is deleted.

    Raises:
        UserError: the folder cannot be written to.
    """
    with _disk_errors(out):
        # Rows and plan first: if this is interrupted, the rest cannot be mistaken for a demo to continue.
        shutil.rmtree(out / ROWS_FOLDER, ignore_errors=True)
        for name in (EARLIER_LEDGER, PLAN_FILE):
            (out / name).unlink(missing_ok=True)
        for entry in out.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        write_plan(plan, out)


def finish(plan: DemoPlan, shown: Mapping[str, Exhibits], out: Path) -> str:
    """Write the pictures and the report, and return the table.

    Args:
        plan: the demo, whose runs have ended.
        shown: heat maps and searches by arm, the model first.
        out: folder of the demo.

    Raises:
        UserError: the disk is full or cannot be written to; the runs are saved.
    """
    ledger = read_ledger(out, plan)
    table = format_table(split_rows(plan, ledger, study_results(plan, ledger)), arm_names(plan))
    with _disk_errors(out, "free some space; the same command then continues from what was trained"):
        write_exhibits(out, _showcase(plan), shown)
        write_whole(out / "table.txt", f"{table}\n".encode())
        write_study_report(out, out)
    return table


class DemoPlace(Place):
    """The folders of a demo. Runs are in folders with readable names: `ARM/STAGE`."""

    def folder_of(self, arm: str, seed: int, stage: str, digest: str) -> Path:  # noqa: ARG002
        """Folder of a run."""
        return self.runs / arm / stage


def demo_place(out: Path) -> DemoPlace:
    """The place of a demo: rows and models are in one folder, and the models are kept."""
    return DemoPlace(out=out, runs=out, keeps_models=True)


@contextmanager
def _disk_errors(out: Path, way_out: str = "give another --out") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror}); {way_out}") from error


Show = Callable[[str, int, str], None]
"""Called with the arm, its number of finished steps over all stages, and the stage."""


def decide_precisions(plan: DemoPlan, workers: Workers) -> DemoPlan:
    """The plan with `auto` replaced by the faster precision in a worker process, where the arms run."""
    return workers.all([workers.submit(_precisions, plan)])[0]


def arm_paces(plan: DemoPlan, workers: Workers) -> list[Pace]:
    """The paces of both arms, measured at the same time, as they will train."""
    return workers.all([workers.submit(_pace, plan, name) for name in arm_names(plan)])


def run_demo(plan: DemoPlan, out: Path, workers: Workers, show: Show) -> dict[str, Exhibits]:
    """Train and measure both arms, or continue with them; their runs are in `out/ARM`. Returns what is shown of each.

    Raises:
        UserError: an arm failed (the other is stopped then), or diverged.
    """
    place, names = demo_place(out), arm_names(plan)
    Study(plan, place).run(workers, _ArmWatch(plan, show))
    _require_no_divergence(read_ledger(out, plan))
    runs = [place.folder_of(name, plan.seeds[0], stage_names(plan)[0], "") for name in names]
    futures = [workers.submit(make_exhibits, run, _showcase(plan), plan.queries, plan.num_hits) for run in runs]
    return dict(zip(names, workers.all(futures), strict=True))


def _showcase(plan: DemoPlan) -> str:
    """Path of the split that is shown."""
    return str(demo_recipes(plan)[stage_names(plan)[0]].data.test[plan.showcase])


def _require_no_divergence(ended: Ledger) -> None:
    if ended.diverged:
        names = ", ".join(f"{row.arm} in {row.stage}" for row in ended.diverged)
        raise UserError(f"{names}: training diverged, so there is nothing to compare; start again by --fresh")


class _ArmWatch(Watch):
    """Shows the steps of an arm summed over its stages."""

    def __init__(self, plan: DemoPlan, show: Show) -> None:
        self._show = show
        self._steps = {stage: recipe.schedule.steps for stage, recipe in demo_recipes(plan).items()}
        self._done: dict[tuple[str, str], int] = {}

    def left(self, agenda: Agenda) -> None:
        """Count the stages that are finished already."""
        lacking = agenda.lacking()
        for arm in {arm for _, arm, _ in lacking}:
            ended = [stage for stage in self._steps if not lacking["run", arm, stage]]
            self._done |= {(arm, stage): self._steps[stage] for stage in ended}

    def step(self, task: Task, done: int) -> None:
        """Show the steps of a task."""
        self._done[task.arm, task.stage] = done
        self._show(task.arm, sum(steps for (arm, _), steps in self._done.items() if arm == task.arm), task.stage)


def _precisions(plan: DemoPlan) -> DemoPlan:
    return with_precisions(plan, usable_device())


def _pace(plan: DemoPlan, name: str) -> Pace:
    device = usable_device()
    recipe = stage_recipe(plan, arm_named(plan, name), stage_names(plan)[0], plan.seeds[0], {})
    return measure_pace(recipe, new_checkpoint(recipe, Ranks.here(device)), device, raise_if_stopped)
