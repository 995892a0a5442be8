"""The plan that lies in a study's folder, a demo's too. Reading it needs neither the data nor torch."""

from dataclasses import dataclass, field
from pathlib import Path

from grr_coca.errors import UserError
from grr_coca.study.ledger import PLAN_FILE
from grr_coca.study.plan.plan import Plan, read_plan
from grr_coca.yaml_files.read import read_yaml

REPORT_FOLDER = "study"
"""Within a demo's folder, for the report on it as a study: files of the same names are the demo's own."""


@dataclass(frozen=True, kw_only=True)
class DemoPlan(Plan):
    """Two arms, of which one is the baseline, and one seed.

    `queries`: texts that are searched for in the showcase, `num_hits` images shown of each. `schedules`: steps of
    pretraining, from few to many, of which the longest that fits the time is taken (`study.demo.schedule`), each with
    the R@1 on the showcase that it was found to reach; none: the recipe's own steps.
    """

    queries: tuple[str, ...]
    num_hits: int = 8
    schedules: dict[int, float | None] = field(default_factory=dict)


def plan_of_folder(folder: Path) -> Plan:
    """The plan of a study or of a demo.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    require_study(folder)
    path = folder / PLAN_FILE
    content = read_yaml(path, "plan")
    is_demo = isinstance(content, dict) and "queries" in content
    return read_plan(path, DemoPlan if is_demo else Plan)


def report_folder(folder: Path) -> Path:
    """Where the report on a study or a demo is written, if no other folder is asked for.

    Raises:
        UserError: there is no plan, or it cannot be read.
    """
    return folder / REPORT_FOLDER if isinstance(plan_of_folder(folder), DemoPlan) else folder


def require_study(folder: Path) -> None:
    """See that a folder is that of a study.

    Raises:
        UserError: it is not there, or has no plan.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that `grr-coca study run` writes to")
    if not (folder / PLAN_FILE).exists():
        raise UserError(f"{folder}: holds no study: {PLAN_FILE} is missing; `grr-coca study run` writes it")
