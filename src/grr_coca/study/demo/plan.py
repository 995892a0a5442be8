"""The plan of a comparison: two presets, one set of recipes, and what the report shows."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from grr_coca.data.sources.open import open_source
from grr_coca.errors import UserError, nearest
from grr_coca.model import build
from grr_coca.presets import get_preset
from grr_coca.structure import from_dict
from grr_coca.train.recipe import Recipe, load_recipe, read_yaml
from grr_coca.train.run.numerics import UNDECIDED, Numerics, decide


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """Both presets go through the same recipes: equal data in equal order, equal steps, equal settings.

    `presets`: the model, then its baseline. `pretrain`, `finetune`: paths of recipes, relative to the plan's folder;
    each fine-tuning starts from the pretrained model. `showcase`: the test split of the pretraining recipe whose
    images the report shows, with `num_captions` of its images captioned and `queries` searched for in it.
    `without`: words; the showcase is measured a second time without captions that hold one of them.
    `schedules`: steps of pretraining, from few to many, of which the longest that fits the time is taken
    (`study.schedule`), each with the R@1 on the showcase that it was found to reach; none: the recipe's own steps.
    `steps`: those that were taken. `numerics`: what `auto` in the recipes means, see `with_numerics`.
    """

    presets: tuple[str, str]
    pretrain: str
    finetune: tuple[str, ...]
    showcase: str
    queries: tuple[str, ...]
    without: tuple[str, ...]
    schedules: dict[int, float | None] = field(default_factory=dict)
    steps: int | None = None
    num_captions: int = 24
    num_hits: int = 8
    numerics: Numerics = UNDECIDED


def load_plan(path: Path) -> DemoPlan:
    """Read a plan; the paths of its recipes become absolute.

    Raises:
        UserError: no such file, not YAML, an unknown key, or a preset that does not exist.
    """
    plan = from_dict(DemoPlan, read_yaml(path), str(path))
    for preset in plan.presets:
        get_preset(preset, "tiny")
    folder = path.resolve().parent
    finetune = tuple(str(folder / recipe) for recipe in plan.finetune)
    plan = replace(plan, pretrain=str(folder / plan.pretrain), finetune=finetune)
    _check(plan, path)
    return plan


def _check(plan: DemoPlan, path: Path) -> None:
    """Find out before hours of training what would fail after them."""
    if plan.presets[0] == plan.presets[1]:
        raise UserError(f"{path}: presets: two different ones are needed to compare")
    recipes = stages(plan)
    if len(recipes) <= len(plan.finetune):
        raise UserError(f"{path}: every recipe needs a name of its own, these are {', '.join(recipes)} and one again")
    pretrain = recipes[Path(plan.pretrain).stem]
    if pretrain.model is None or pretrain.tokenizer is None:
        raise UserError(f"{plan.pretrain}: pretraining needs the keys 'model' and 'tokenizer'")
    if plan.showcase not in pretrain.data.test:
        hint = nearest(plan.showcase, pretrain.data.test)
        raise UserError(f"{path}: showcase: no test split '{plan.showcase}'; {hint}")
    if any(steps < 1 for steps in plan.schedules) or list(plan.schedules) != sorted(set(plan.schedules)):
        raise UserError(f"{path}: schedules: give numbers of steps, from the shortest to the longest")
    if not plan.queries:
        raise UserError(f"{path}: queries: give one or more")
    for recipe in plan.finetune:
        if "test" not in recipes[Path(recipe).stem].data.test:
            raise UserError(f"{recipe}: data: test: a split named 'test' is needed")
    for split in (split for recipe in recipes.values() for split in recipe.data.test.values()):
        open_source(split)


def stages(plan: DemoPlan) -> dict[str, Recipe]:
    """The recipes in the order in which they are run, pretraining first, each named by its file."""
    paths = [Path(recipe) for recipe in (plan.pretrain, *plan.finetune)]
    recipes = {path.stem: load_recipe(path) for path in paths}
    first = Path(plan.pretrain).stem
    recipes[first] = _with_steps(recipes[first], plan.steps)
    return {name: plan.numerics.for_autos_of(recipe) for name, recipe in recipes.items()}


def _with_steps(recipe: Recipe, steps: int | None) -> Recipe:
    """A shorter or longer run of the same kind, validated as often."""
    if steps is None:
        return recipe
    share = recipe.evaluation.interval / recipe.schedule.steps
    warmup_steps = min(recipe.schedule.warmup_steps, steps)
    return replace(
        recipe,
        schedule=replace(recipe.schedule, steps=steps, warmup_steps=warmup_steps),
        evaluation=replace(recipe.evaluation, interval=max(1, round(share * steps))),
    )


def with_numerics(plan: DemoPlan, device: torch.device) -> DemoPlan:
    """The plan with `auto` decided for both arms at once; each by itself might decide otherwise on a busy machine."""
    pretrain = next(iter(stages(plan).values()))
    assert pretrain.model is not None, "load_plan has seen to that"
    assert pretrain.tokenizer is not None, "and to that"
    model = replace(pretrain.model, preset=plan.presets[0])
    return replace(plan, numerics=decide(pretrain, build(model.config(pretrain.tokenizer.vocab_size)), device))
