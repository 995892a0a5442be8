"""The folder of a demo, which keeps everything in one place.

| file | content |
|---|---|
| `plan.yaml` | the plan, with the steps and precisions that were chosen |
| `rows/`, `digests.json`, `showcase/` | the rows and the thumbnails, as in any study |
| `PRESET/STAGE/` | the run of an arm in a stage |
| `table.txt`, `results.json`, `report.md`, `report.html` | the results, written when both arms have finished |
| `figures/`, `exhibits/` | pictures of the report: plots, heat maps, images that were found |
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from grr_coca.common.dict_to_dataclass import differences, read_yaml
from grr_coca.common.errors import UserError
from grr_coca.common.files import write_whole
from grr_coca.evaluate.table import format_table
from grr_coca_study.demo.plan import arm_names, demo_recipes
from grr_coca_study.exhibits import write_exhibits
from grr_coca_study.ledger import DIGESTS_FILE, read_ledger
from grr_coca_study.plan import PLAN_FILE, DemoPlan, read_plan, stage_names
from grr_coca_study.report.numbers import split_rows
from grr_coca_study.report.page import FIGURES, PAGE_FILE, REPORT_FILE, RESULTS_FILE, write_study_report
from grr_coca_study.rows import ROWS_FOLDER
from grr_coca_study.running.run import Place, write_plan
from grr_coca_study.running.workers import Workers
from grr_coca_study.thumbnails import EXHIBITS, LISTING, SHOWCASE_FOLDER

_OUTCOME = ("table.txt", RESULTS_FILE, REPORT_FILE, PAGE_FILE, SHOWCASE_FOLDER, FIGURES, EXHIBITS)


class DemoPlace(Place):
    """The folders of a demo. Rows and models are in one folder, runs under readable names, and the models are kept."""

    def __init__(self, out: Path) -> None:
        super().__init__(out=out, runs=out, keeps_models=True)

    def folder_of(self, arm: str, seed: int, stage: str, digest: str) -> Path:  # noqa: ARG002
        """Return the folder of a run: `ARM/STAGE`."""
        return self.runs / arm / stage


def open_folder(out: Path, plan: DemoPlan, steps: int | None, is_fresh: bool) -> DemoPlan | None:
    """Return the plan of the demo in a folder, with its steps and precisions, or None if a new one begins there.

    Args:
        out: The folder, which is created if it does not exist.
        plan: The plan of the command.
        steps: The steps that are requested; None: any.
        is_fresh: True: a new demo begins, whatever demo the folder has.

    Raises:
        UserError: If the folder has other files, or cannot be written to; or a demo of another plan (names the first
            key that differs) or of other steps.
    """
    path = out / PLAN_FILE
    with _disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        found = read_yaml(path, "plan") if path.exists() else None
        has_demo = isinstance(found, dict) and "queries" in found
        if not has_demo and any(out.iterdir()):  # rows of a study may have taken days
            raise UserError(f"{out}: has files that are not of a demo; pass another --out")
    if not os.access(out, os.W_OK):
        raise UserError(f"{out}: cannot be written to; pass another --out")
    if is_fresh or not has_demo:
        return None
    begun = read_plan(path, DemoPlan)
    undecided = replace(begun, steps=plan.steps, precision=plan.precision, muon_precision=plan.muon_precision)
    for key, wanted, found in differences(plan, undecided):
        raise UserError(f"{path}: {key} is {found}, not {wanted}; replace the demo by --fresh, or pass another --out")
    if steps not in (None, begun.steps):
        raise UserError(f"{out}: holds a demo of {begun.steps:,} steps, not {steps:,}; start again by --fresh")
    return begun


def begin(plan: DemoPlan, out: Path) -> None:
    """Start a demo in a folder; an earlier one is deleted, but no other files.

    Raises:
        UserError: If the folder cannot be written to.
    """
    with _disk_errors(out):
        # The rows first and the plan last, so that it is a demo whenever this is interrupted.
        for name in (ROWS_FOLDER, DIGESTS_FILE, *arm_names(plan), *_OUTCOME, PLAN_FILE):
            shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
        write_plan(plan, out)


def finish(plan: DemoPlan, out: Path, workers: Workers) -> str:
    """Write the pictures and the report of a demo whose runs have ended, and return the table.

    Raises:
        UserError: If an arm diverged, or the disk is full or cannot be written to; the runs are saved.
    """
    ledger, names = read_ledger(out, plan), arm_names(plan)
    if ledger.diverged:
        diverged = ", ".join(f"{row.arm} in {row.stage}" for row in ledger.diverged)
        raise UserError(f"{diverged}: training diverged, so there is nothing to compare; start again by --fresh")
    pretraining = stage_names(plan)[0]
    showcase = str(demo_recipes(plan)[pretraining].data.test[plan.showcase])
    table, folder = format_table(split_rows(plan, ledger), names), out / EXHIBITS
    with _disk_errors(out, "free some space; the same command then continues from what was trained"):
        shown = workers.all(
            [
                workers.submit(
                    write_exhibits, name, out / name / pretraining, showcase, plan.queries, plan.num_hits, folder
                )
                for name in names
            ]
        )
        listing = json.dumps(dict(zip(names, shown, strict=True)), indent=1, ensure_ascii=False)
        write_whole(folder / LISTING, listing.encode("utf-8", "backslashreplace"))
        write_whole(out / "table.txt", f"{table}\n".encode())
        write_study_report(out, out)
    return table


@contextmanager
def _disk_errors(out: Path, way_out: str = "pass another --out") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror}); {way_out}") from error
