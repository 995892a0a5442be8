"""Studies that pages tell of, opened: plan, ledger, and what the rows amount to."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from grr_coca.study.ledger import DIGESTS_FILE, PLAN_FILE, Ledger, ledger_files, read_ledger
from grr_coca.study.plan import Plan, arm_named, compared_with, plan_of_folder
from grr_coca.study.report.numbers import StudyResults, study_results


class Asked(NamedTuple):
    """What a place asks about: a study's folder, and the arms to compare. `over`: None for the plan's baseline. `arm`:
    the only one that is compared with it; None: all."""

    folder: str
    over: str | None = None
    arm: str | None = None

    @property
    def name(self) -> str:
        """With which the names of its figures begin: `tokens16-600` of `studies/tokens16/600`."""
        begins = self.folder.removeprefix("studies/").replace("/", "-")
        return begins + (f"-of-{self.arm}" if self.arm else "") + (f"-over-{self.over}" if self.over else "")


@dataclass(frozen=True)
class Study:
    """A study that has rows: its name, and what the rows amount to."""

    name: str
    plan: Plan
    ledger: Ledger
    results: StudyResults


@cache
def open_study(root: Path, asked: Asked) -> Study | None:
    """The study that is asked about, in its folder below the root; None if it has no row yet."""
    folder = root / asked.folder
    if not ledger_files(folder):
        return None
    plan = compared_with(plan_of_folder(folder), asked.over)
    if asked.arm:
        plan = replace(plan, arms=(arm_named(plan, asked.arm), arm_named(plan, plan.baseline)))
    ledger = read_ledger(folder, seeds=plan.seeds)
    return Study(asked.name, plan, ledger, study_results(plan, ledger))


def ledger_digest(folders: Iterable[Path]) -> str:
    """Of everything that reports on these studies are made of."""
    paths = [path for folder in folders for path in (folder / PLAN_FILE, folder / DIGESTS_FILE, *ledger_files(folder))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]
