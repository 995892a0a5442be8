"""What was tuned: the settings that each arm was tried with, and those that were taken."""

from grr_coca.study.ledger import Ledger
from grr_coca.study.plan.plan import Plan
from grr_coca.study.report.tables import Table
from grr_coca.study.report.words import arm_titles


def tuning_table(plan: Plan, ledger: Ledger) -> Table:
    """Settings that were tried on `val` for each arm and stage, and the ones that were taken."""
    score = plan.tuning.score if plan.tuning is not None else "coca_loss"
    titles = arm_titles(plan)
    rows = []
    for arm in plan.arms:
        for stage in dict.fromkeys(row.stage for row in ledger.trials if row.arm == arm.name):
            trials = [row for row in ledger.trials if (row.arm, row.stage) == (arm.name, stage)]
            chosen = [row.settings for row in ledger.choices if (row.arm, row.stage) == (arm.name, stage)]
            scores = [row.metrics.get("val", {}).get(score) for row in trials]
            tried = [
                f"{_settings(row.settings)}: {'diverged' if value is None else f'{value:.4g}'}"
                for row, value in zip(trials, scores, strict=True)
            ]
            taken = _settings(chosen[-1]) if chosen else "–"
            rows.append((titles[arm.name], stage, str(len(trials)), taken, "; ".join(tried)))
    note = f"{score} on val, with a seed that is not one of the study's. Test splits were not looked at."
    at_end = ends_of_grids(plan, ledger)
    if at_end:
        note += f" Taken at an end of the grid, so that a better value may lie beyond it: {'; '.join(at_end)}."
    return Table("Tuning", ("arm", "stage", "trials", "taken", "tried"), tuple(rows), note)


def ends_of_grids(plan: Plan, ledger: Ledger) -> list[str]:
    """Choices at the smallest or the largest of three or more numbers that were tried, each with its arms."""
    titles = arm_titles(plan)
    arms: dict[str, list[str]] = {}
    for choice in ledger.choices:
        trials = [row.settings for row in ledger.trials if (row.arm, row.stage) == (choice.arm, choice.stage)]
        for key, value in choice.settings.items():
            tried = {number for settings in trials if isinstance(number := settings.get(key), int | float)}
            if len(tried) > 2 and value in (min(tried), max(tried)):
                arms.setdefault(f"{choice.stage}, {_short(key)} {value}", []).append(titles[choice.arm])
    return [f"{what} ({', '.join(names)})" for what, names in arms.items()]


def _settings(settings: dict[str, object]) -> str:
    return ", ".join(f"{_short(key)} {value}" for key, value in settings.items())


def _short(key: str) -> str:
    """`optimizer.lr` as `lr`."""
    return key.rpartition(".")[2]
