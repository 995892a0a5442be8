"""What was tuned: the settings that were tried for each arm, and those that were taken."""

from grr_coca.study.ledger import Ledger, LedgerRow
from grr_coca.study.plan.plan import Plan, stage_names
from grr_coca.study.report.tables import Table
from grr_coca.study.report.words import arm_titles


def tuning_table(plan: Plan, ledger: Ledger) -> Table:
    """The score on `val` of every setting that was tried, by stage, for each arm that was tuned; marks those taken."""
    score = plan.tuning.metric if plan.tuning is not None else "coca_loss"
    titles = arm_titles(plan)
    tuned = [arm.name for arm in plan.arms if any(row.arm == arm.name for row in ledger.trials)]
    in_order = sorted(ledger.trials, key=lambda trial: _place(plan, trial))
    tried = dict.fromkeys((row.stage, _settings(row.settings)) for row in in_order)
    scores = {
        (row.arm, row.stage, _settings(row.settings)): row.metrics.get("val", {}).get(score) for row in ledger.trials
    }
    taken = {(row.arm, row.stage): _settings(row.settings) for row in ledger.choices}
    rows = []
    for stage, settings in tried:
        cells = (_cell(scores, (arm, stage, settings), is_taken=taken.get((arm, stage)) == settings) for arm in tuned)
        rows.append((stage, settings, *cells))
    note = f"{score} on val, with a seed that is not one of the study's. Test splits were not looked at."
    at_end = ends_of_grids(plan, ledger)
    if at_end:
        note += f" Taken at an end of the grid, so that a better value may lie beyond it: {'; '.join(at_end)}."
    return Table("Tuning", ("stage", "settings", *(titles[arm] for arm in tuned)), tuple(rows), note)


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


def _place(plan: Plan, trial: LedgerRow) -> tuple[int, ...]:
    """The stage of a trial, and the places of its settings in the lists of the plan: trials end in any order."""
    stages = stage_names(plan)
    stage = stages.index(trial.stage) if trial.stage in stages else len(stages)
    if plan.tuning is None:
        return (stage,)
    grid = plan.tuning.finetune if stage else plan.tuning.pretrain
    return stage, *(grid[key].index(value) for key, value in trial.settings.items() if value in grid.get(key, ()))


def _cell(scores: dict[tuple[str, str, str], float | None], trial: tuple[str, str, str], *, is_taken: bool) -> str:
    if trial not in scores:
        return "–"
    value = scores[trial]
    return ("diverged" if value is None else f"{value:#.4g}") + (", taken" if is_taken else "")


def _settings(settings: dict[str, object]) -> str:
    return ", ".join(f"{_short(key)} {value}" for key, value in settings.items())


def _short(key: str) -> str:
    """`optimizer.lr` as `lr`."""
    return key.rpartition(".")[2]
