"""The plan of a study or a demo: arms, seeds, recipes, tuning and endpoints, from a YAML file.

Reading it needs neither the data, nor torch, nor scipy.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from grr_coca.common.dict_to_dataclass import from_dict, read_yaml
from grr_coca.common.errors import UserError, nearest
from grr_coca.model.presets import get_preset
from grr_coca.study.ledger import PLAN_FILE, LedgerRow
from grr_coca.train.recipe import CAPTION_SCORES, Precision, Score

PHASES = ("pretraining", "finetuning")
RANKING_METRICS = tuple(f"{way}R@{k}" for way in ("", "image_to_text/") for k in (1, 5, 10))
LOSS_METRICS = ("contrastive_loss", "contrastive_loss_refitted", "captioning_loss", "perplexity", "coca_loss")
METRICS = (*LOSS_METRICS, *RANKING_METRICS, *CAPTION_SCORES)
"""Metrics that an endpoint may name, by their keys in the rows of a ledger."""

SIGNIFICANCE_LEVEL = 0.05
"""Family-wise error rate of the primary endpoints of a study."""

AnyPlan = TypeVar("AnyPlan", bound="Plan")

_LAST_WITH_VARIANTS = "ed1405e6"
"""The last commit whose code runs arms with the key `variant`: models that no config describes."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm of a study: a model, and how it is trained.

    - `title`: display name in reports; None: named after its parts, or by its name
    - `preset`: None if the arm has the name of its preset
    - `overrides`: values for keys of the pretraining recipe, such as `model.qk_norm: rms`
    - `recipes`: a folder with recipes of the same file names, which replace the plan's for this arm. They may differ in
      everything but the data, the tokenizer, the weights of the losses and the evaluation batch size. The author of the
      plan chooses their steps so that all arms cost the same
    """

    name: str
    title: str | None = None
    preset: str | None = None
    overrides: dict[str, object] = field(default_factory=dict)
    recipes: str | None = None

    @property
    def preset_name(self) -> str:
        """Name of the arm's preset."""
        return self.preset or self.name


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A grid search over keys of the recipes, the same for every arm.

    A trial trains one combination of the values in `pretrain`, with `seed`. The best by `score` on the validation split
    is chosen. Then the values in `finetune` are tried for each fine-tuning, from the chosen pretrained model. Test
    splits are not used.

    - `steps`: steps of a pretraining trial by the plan's recipe; an arm with recipes of its own takes an equal share of
      its steps. None: all steps
    - `arms`: only these are tried, and all arms of the study get the settings that are best for them on average. If it
      is empty, every arm is tried and gets its own best settings. Chance chooses among settings that are nearly equal,
      so arms with settings of their own differ in more than their parts
    """

    seed: int
    arms: tuple[str, ...] = ()
    steps: int | None = None
    pretrain: dict[str, tuple[object, ...]] = field(default_factory=dict)
    finetune: dict[str, tuple[object, ...]] = field(default_factory=dict)
    score: Score = "coca_loss"

    @property
    def metric(self) -> str:
        """Key of the score in the rows of a ledger."""
        return self.score.removeprefix("text_to_image/")


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """The metrics that a study compares, named before it is run as `PHASE/METRIC`.

    The phase is `pretraining`, or `finetuning` for the mean of all fine-tunings. Holm's correction covers the primary
    endpoints. `split`: the test split on which they are measured.
    """

    primary: tuple[str, ...]
    secondary: tuple[str, ...] = ()
    split: str = "test"

    @property
    def all(self) -> tuple[str, ...]:
        """All endpoints, the primary ones first."""
        return (*self.primary, *self.secondary)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a study: with each seed, each arm is pretrained, and from that model fine-tuned on each further set.

    All arms get the same data in the same order, settings from the same search and, unless they have recipes of their
    own, the same steps.

    - `arms`: for each seed, they run in this order
    - `baseline`: the arm that the others are compared with
    - `seeds`: empty if the plan only searches for settings
    - `pretrain`, `finetune`: recipe files, relative to the plan's folder. A stage is named after its file
    - `steps`: pretraining steps instead of the recipe's; an arm with recipes of its own takes an equal share
    - `precision`, `muon_precision`: replace every `auto` of the recipes. Rows of other precisions do not count
    - `showcase`: a test split of the pretraining recipe. The report shows `num_captions` of its images with the caption
      of each model, and a third as many of each fine-tuning
    - `without`: words. The showcase is measured once more without images that have one of them in a caption
    """

    arms: tuple[Arm, ...]
    baseline: str
    seeds: tuple[int, ...]
    pretrain: str
    finetune: tuple[str, ...] = ()
    endpoints: Endpoints
    tuning: Tuning | None = None
    steps: int | None = None
    precision: Precision = "auto"
    muon_precision: Precision = "auto"
    showcase: str
    num_captions: int = 6
    without: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DemoPlan(Plan):
    """The plan of a demo: a model, its baseline, and one seed.

    - `queries`: texts that the report searches for in the showcase, with `num_hits` images each
    - `schedules`: pretraining steps in ascending order, each with the R@1 on the showcase that it reached, if that was
      measured. The demo takes the longest schedule that fits the time. Empty: the steps of the recipe
    """

    queries: tuple[str, ...]
    num_hits: int = 8
    schedules: dict[int, float | None] = field(default_factory=dict)


def stage_names(plan: Plan) -> tuple[str, ...]:
    """Names of the stages, pretraining first."""
    return tuple(Path(recipe).stem for recipe in (plan.pretrain, *plan.finetune))


def showcase_of(plan: Plan, stage: str) -> tuple[str, int]:
    """The test split whose images a report shows for a stage, and the number of images."""
    if stage == stage_names(plan)[0]:
        return plan.showcase, plan.num_captions
    return plan.endpoints.split, plan.num_captions // 3


def arm_named(plan: Plan, name: str) -> Arm:
    """The arm of this name.

    Raises:
        UserError: the plan has none; names the nearest.
    """
    arms = {arm.name: arm for arm in plan.arms}
    if name not in arms:
        raise UserError(f"the plan has no arm '{name}'; {nearest(name, arms)}")
    return arms[name]


def compared_with(plan: Plan, baseline: str | None) -> Plan:
    """The plan with another arm as the baseline. None: the plan itself.

    The plan's own baseline goes to the end of the arms, since a report is about the first arm that is not the baseline.

    Raises:
        UserError: the plan has no such arm.
    """
    if baseline is None:
        return plan
    arms = sorted(plan.arms, key=lambda arm: arm.name == plan.baseline)
    return replace(plan, arms=tuple(arms), baseline=arm_named(plan, baseline).name)


def split_endpoint(endpoint: str) -> tuple[str, str]:
    """The phase and the metric of an endpoint's name."""
    phase, _, metric = endpoint.partition("/")
    return phase, metric


def scores_captions(plan: Plan) -> bool:
    """True if an endpoint is a caption score, so that the test splits must be captioned."""
    return any(split_endpoint(endpoint)[1] in CAPTION_SCORES for endpoint in plan.endpoints.all)


def lacking_scores(plan: Plan, row: LedgerRow) -> list[str]:
    """Caption scores that the plan's endpoints need and a run lacks.

    A row that was copied from another study has only the scores that that study needed. All other metrics are always
    measured.
    """
    phase = PHASES[0] if row.stage == stage_names(plan)[0] else PHASES[1]
    needed = [metric for where, metric in map(split_endpoint, plan.endpoints.all) if where == phase]
    measured = row.metrics.get(plan.endpoints.split, {})
    lacking = [metric for metric in needed if metric in CAPTION_SCORES and metric not in measured]
    return lacking if row.kind == "run" else []


# --- Reading a plan


def read_plan(path: Path, kind: type[AnyPlan]) -> AnyPlan:
    """Read a plan and make the paths of its recipes absolute. Neither recipes nor data are read.

    Args:
        path: YAML file.
        kind: `Plan`, or a subclass with more keys.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is invalid.
    """
    plan = from_dict(kind, _with_full_arms(read_yaml(path, "plan"), path), str(path))
    _check(plan, path)
    folder = path.resolve().parent

    def absolute(there: str) -> str:
        return os.path.normpath(folder / there)

    return replace(
        plan,
        arms=tuple(arm if arm.recipes is None else replace(arm, recipes=absolute(arm.recipes)) for arm in plan.arms),
        pretrain=absolute(plan.pretrain),
        finetune=tuple(map(absolute, plan.finetune)),
    )


def plan_of_folder(folder: Path) -> Plan:
    """Read the plan in the folder of a study or a demo.

    Raises:
        UserError: the folder has no plan, or the plan is invalid.
    """
    path = folder / PLAN_FILE
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that `grr-coca study run` writes to")
    if not path.exists():
        raise UserError(
            f"{folder}: is not a study: {PLAN_FILE} is missing; give the folder that `grr-coca study run` writes to"
        )
    content = read_yaml(path, "plan")
    is_demo = isinstance(content, dict) and "queries" in content
    return read_plan(path, DemoPlan if is_demo else Plan)


def _with_full_arms(content: object, path: Path) -> object:
    """Replace each arm that is given by its preset's name alone by the full form.

    Raises:
        UserError: an arm of an earlier study has a model that this code does not have.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("arms"), list):
        return content
    arms = [{"name": arm} if isinstance(arm, str) else arm for arm in content["arms"]]
    for arm in arms:
        if isinstance(arm, dict) and arm.pop("variant", None) is not None:
            raise UserError(
                f"{path}: arms: {arm.get('name')}: variant: this code has no such models; "
                f"commit {_LAST_WITH_VARIANTS} runs this plan"
            )
    return {**content, "arms": arms}


def _check(plan: Plan, path: Path) -> None:
    """Raise a UserError if values of the plan contradict each other; recipes are not read."""
    names = [arm.name for arm in plan.arms]
    _require_once(names, f"{path}: arms")
    _require_once([arm.title or arm.name for arm in plan.arms], f"{path}: arms: titles")
    _require_once(plan.seeds, f"{path}: seeds")
    _require_once(stage_names(plan), f"{path}: stages (the file names of the recipes)")
    if len(names) < 2:
        raise UserError(f"{path}: arms: a comparison needs two or more")
    for name in names:
        if name in ("", ".", "..") or "/" in name:
            raise UserError(
                f"{path}: arms: '{name}' is not a valid name of a folder, which each arm gets; give another name"
            )
    for arm in plan.arms:
        try:
            get_preset(arm.preset_name, "tiny")
        except UserError as error:
            raise UserError(f"{path}: arms: {error}") from error
    if plan.baseline not in names:
        raise UserError(f"{path}: baseline: the plan has no arm '{plan.baseline}'; {nearest(plan.baseline, names)}")
    if min(plan.seeds, default=0) < 0 or not (plan.seeds or plan.tuning):
        raise UserError(f"{path}: seeds: give one or more, each 0 or more")
    if plan.steps is not None and plan.steps < 1:
        raise UserError(f"{path}: steps: {plan.steps} is out of range; give 1 or more")
    _check_keys(plan, path)
    if plan.num_captions < 0:
        raise UserError(f"{path}: num_captions: {plan.num_captions} is out of range; give 0 or more")
    _check_endpoints(plan, path)
    if plan.tuning is not None:
        _check_tuning(plan, plan.tuning, path)


def _check_keys(plan: Plan, path: Path) -> None:
    """Raise a UserError if an arm or tuning sets a key of the recipe that other keys of the plan decide."""
    given = {f"arms: {arm.name}: overrides": arm.overrides.keys() for arm in plan.arms}
    if plan.tuning is not None:
        given |= {"tuning: pretrain": plan.tuning.pretrain.keys(), "tuning: finetune": plan.tuning.finetune.keys()}
    for where, keys in given.items():
        for key, decided_by in (("seed", "the plan's 'seeds'"), ("model.preset", "an arm's 'preset'")):
            if key in keys:
                raise UserError(f"{path}: {where}: {key} is given by {decided_by}; remove it here")


def _check_endpoints(plan: Plan, path: Path) -> None:
    _require_once(plan.endpoints.all, f"{path}: endpoints")
    if not plan.endpoints.primary:
        raise UserError(f"{path}: endpoints: primary: name one or more")
    phases = PHASES if plan.finetune else PHASES[:1]
    known = [f"{phase}/{metric}" for phase in phases for metric in METRICS]
    for endpoint in plan.endpoints.all:
        if endpoint not in known:
            raise UserError(f"{path}: endpoints: there is no '{endpoint}'; {nearest(endpoint, known)}")


def _check_tuning(plan: Plan, tuning: Tuning, path: Path) -> None:
    names = [arm.name for arm in plan.arms]
    _require_once(tuning.arms, f"{path}: tuning: arms")
    for name in tuning.arms:
        if name not in names:
            raise UserError(f"{path}: tuning: arms: the plan has no arm '{name}'; {nearest(name, names)}")
    for key, value, minimum in (("seed", tuning.seed, 0), ("steps", tuning.steps, 1)):
        if value is not None and value < minimum:
            raise UserError(f"{path}: tuning: {key}: {value} is out of range; give {minimum} or more")
    if tuning.seed in plan.seeds:
        raise UserError(
            f"{path}: tuning: seed {tuning.seed} is one of the plan's seeds; give another, so that these stay unseen"
        )
    if tuning.score in CAPTION_SCORES:
        raise UserError(f"{path}: tuning: score {tuning.score} is not measured in trials; give coca_loss or a recall")
    for name, grid in (("pretrain", tuning.pretrain), ("finetune", tuning.finetune)):
        for key, values in grid.items():
            _require_once(values, f"{path}: tuning: {name}: {key}")
            if not values:
                raise UserError(f"{path}: tuning: {name}: {key}: give one or more values")
            if any(isinstance(value, Mapping) for value in values):
                raise UserError(f"{path}: tuning: {name}: {key} is a group of keys; give one key, as `{key}.NAME`")
    for arm in plan.arms:
        for key in arm.overrides:
            if any(key == tuned or key.startswith(f"{tuned}.") for tuned in tuning.pretrain):
                raise UserError(
                    f"{path}: arms: {arm.name}: overrides: {key} is tuned too, which replaces this value; keep one"
                )
    if tuning.finetune and not plan.finetune:
        raise UserError(f"{path}: tuning: finetune: the plan has no fine-tuning")


def _require_once(items: Iterable[Any], where: str) -> None:
    seen: list[Any] = []  # not a set: a value may be a list, such as `betas`
    for item in items:
        if item in seen:
            raise UserError(f"{where}: {item} is given twice; remove one")
        seen.append(item)
