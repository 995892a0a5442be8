"""Digests of recipes and data are those in `digests.json` of every ledger in `studies/`: no renamed field changes them.

Earlier code ran these studies. Their plans have keys of an earlier form, which are translated here, and each row of
`runs.jsonl` has the settings that were chosen for it. Models of arms with a `variant` have no config any more.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import yaml
from support import DATASETS

from grr_coca.common.dict_to_dataclass import from_dict
from grr_coca_study.plan import Plan, Settings, find_arm, stage_names
from grr_coca_study.stages import data_digest, recipe_digest, stage_recipe

STUDIES = Path(__file__).parents[2] / "studies"
LEDGERS = sorted(path.parent.relative_to(STUDIES).as_posix() for path in STUDIES.rglob("digests.json"))
ELSEWHERE = {"icons": {"icons"}, "position": {"scenes"}} | {
    f"styles/{style}": {f"without_{style}"} for style in ("fluent_emoji_flat", "streamline_emojis", "twemoji")
}
"""Stages whose data do not come with the code."""


@cache
def plan_of(ledger: str) -> tuple[Plan, frozenset[str]]:
    """The plan of a ledger in today's form, and the names of its arms with a variant."""
    path = STUDIES / ledger / "plan.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    arms = [{"name": arm} if isinstance(arm, str) else arm for arm in content["arms"]]
    variants = frozenset(arm["name"] for arm in arms if arm.get("variant"))
    plain = [{key: value for key, value in arm.items() if key != "variant"} for arm in arms]
    tuning = content.get("tuning")
    now = tuning and {"seeds": [tuning["seed"]], "steps": tuning.get("steps")}
    plan = from_dict(Plan, {**content, "arms": plain, "tuning": now}, str(path))

    def absolute(there: str) -> str:
        return str((path.parent / there).resolve())

    return replace(
        plan,
        arms=tuple(arm if arm.recipes is None else replace(arm, recipes=absolute(arm.recipes)) for arm in plan.arms),
        pretrain=absolute(plan.pretrain),
        finetune=tuple(map(absolute, plan.finetune)),
    ), variants


def recorded(ledger: str) -> dict:
    return json.loads((STUDIES / ledger / "digests.json").read_text(encoding="utf-8"))


def rows_of(ledger: str) -> Iterator[dict]:
    """The rows of a finished study, or the files of one that is still running."""
    finished = STUDIES / ledger / "runs.jsonl"
    files = [finished] if finished.exists() else sorted((STUDIES / ledger / "rows").glob("*.json"))
    for file in files:
        yield from map(json.loads, file.read_text(encoding="utf-8").splitlines())


def digests(ledger: str, arm: str, stage: str, tried: list[Settings], starts: list[str], *, is_trial: bool) -> set[str]:
    """What the recipe of a stage is digested to, with each of these settings."""
    plan, _ = plan_of(ledger)
    is_first = stage == stage_names(plan)[0]
    recipes = [stage_recipe(plan, find_arm(plan, arm), stage, 0, settings, is_trial) for settings in tried]
    return {recipe_digest(recipe, start) for recipe, start in product(recipes, [None] if is_first else starts)}


def settings_of(rows: list[dict], arm: str, stage: str, kinds: tuple[str, ...]) -> list[Settings]:
    """The settings of rows of these kinds, each once."""
    found = [
        tuple((row.get("settings") or {}).items())
        for row in rows
        if (row["arm"], row["stage"]) == (arm, stage) and row["kind"] in kinds
    ]
    return [dict(items) for items in dict.fromkeys(found)]


@pytest.mark.parametrize("ledger", LEDGERS)
def test_recipes_have_their_recorded_digests(ledger):
    (plan, variants), valid, rows = plan_of(ledger), recorded(ledger), list(rows_of(ledger))
    first, num_checked = stage_names(plan)[0], 0
    for name, is_trial in (("recipes", False), ("trials", True)):
        for arm, stages in valid.get(name, {}).items():
            starts = _as_list(stages.get(first))
            for stage, stored in stages.items():
                if arm not in variants and stored:
                    tried = settings_of(rows, arm, stage, ("trial",) if is_trial else ("run", "choice"))
                    # An arm of a running study may have no row yet: its recipe is that of the plan.
                    found = digests(ledger, arm, stage, tried or [{}], starts, is_trial=is_trial)
                    assert found >= set(_as_list(stored)), f"{name}: {arm}, {stage}"
                    num_checked += 1
    assert num_checked


@pytest.mark.parametrize("ledger", LEDGERS)
def test_data_have_their_recorded_digests(ledger):
    (plan, _), valid = plan_of(ledger), recorded(ledger)["data"]
    assert valid.keys() <= set(stage_names(plan))
    for stage in valid.keys() - ELSEWHERE.get(ledger, set()):
        recipe = stage_recipe(plan, plan.arms[0], stage, 0, {})
        assert Path(recipe.data.train).is_relative_to(DATASETS)
        assert data_digest(recipe) == valid[stage]


def _as_list(stored: str | list[str] | None) -> list[str]:
    return [stored] if isinstance(stored, str) else list(stored or ())
