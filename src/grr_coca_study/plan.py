"""Plan of a study or a demo, from a YAML file: arms with their grids, seeds, recipes and endpoints.

Reading a plan needs neither the data nor torch nor SciPy.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TypeVar

from grr_coca.common.dict_to_dataclass import from_dict, read_yaml
from grr_coca.common.errors import UserError, suggest_name
from grr_coca.model.presets import get_preset
from grr_coca.train.recipe import CAPTION_SCORES, MuonPrecision, Precision
from grr_coca_study.rows import LedgerRow

PLAN_FILE = "plan.yaml"
"""Name of the plan file that runs write to a study's folder."""
PHASES = ("pretraining", "finetuning")
RANKING_METRICS = tuple(f"{way}R@{k}" for way in ("", "image_to_text/") for k in (1, 5, 10))
LOSS_METRICS = ("contrastive_loss", "contrastive_loss_refitted", "captioning_loss", "perplexity", "coca_loss")
METRICS = (*LOSS_METRICS, *RANKING_METRICS, *CAPTION_SCORES)
"""Valid metrics for endpoints, named by their keys in ledger rows."""

SIGNIFICANCE_LEVEL = 0.05
"""Family-wise error rate for the primary endpoints of a study."""

AnyPlan = TypeVar("AnyPlan", bound="Plan")

EARLIER_LEDGER = "runs.jsonl"
"""File with the rows of a study that was run by earlier code, in the plan's default folder."""

Settings = Mapping[str, object]
"""Point of a grid: values by the path of a recipe key, such as `optimizer.lr`."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Arm of a study: a model and its training.

    Attributes:
        title: Display name in reports. By default, known arms have fixed display names, such as `Baseline + GEGLU`, and
            all other arms are displayed by their name.
        preset: Preset of the model. None if the arm has the name of its preset.
        overrides: Values for keys of the pretraining recipe, such as `model.qk_norm: rms`.
        grid: Lists of values for keys of the pretraining recipe, such as `optimizer.lr: [0.001, 0.002]`. Each
            combination is a point, which is pretrained separately. The best point has the lowest CoCa loss on
            `val`.
        finetune_grid: Like `grid`, but for keys of all fine-tunings, which start from the model at the best point.
        recipes: Folder with recipes that replace the plan's recipes for this arm, and have the same file names. They
            may differ in everything but the data, the tokenizer, the loss weights and the evaluation batch size. The
            author of the plan chooses the number of steps so that all arms cost the same.
    """

    name: str
    title: str | None = None
    preset: str | None = None
    overrides: dict[str, object] = field(default_factory=dict)
    grid: dict[str, tuple[object, ...]] = field(default_factory=dict)
    finetune_grid: dict[str, tuple[object, ...]] = field(default_factory=dict)
    recipes: str | None = None

    @property
    def preset_name(self) -> str:
        """Name of the arm's preset."""
        return self.preset or self.name


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Separate seeds for the grids of the arms, so that the plan's seeds are run only at the best points.

    Attributes:
        seeds: Seeds of the trials, which are measured on `val`, not on the test splits.
        steps: Number of pretraining steps in a trial. An arm with separate recipes uses the same fraction of its steps.
            None means all steps.
        shared: Whether all arms use the point that is best on average over the arms with a grid, instead of separate
            points. Choices among nearly equal points are random, so arms with separate settings differ in more than
            their parts.
    """

    seeds: tuple[int, ...]
    steps: int | None = None
    shared: bool = False


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Metrics that a study compares, in the form `PHASE/METRIC`. They are specified before the study is run.

    The phase is `pretraining`, or `finetuning` for the mean of all fine-tunings. Holm's correction covers the primary
    endpoints. `split` is the test split on which endpoints are measured.
    """

    primary: tuple[str, ...]
    secondary: tuple[str, ...] = ()
    split: str = "test"

    @property
    def all(self) -> tuple[str, ...]:
        """All endpoints, primary ones first."""
        return (*self.primary, *self.secondary)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a study. For each seed, each arm is pretrained, and the model is then fine-tuned on each additional
    dataset.

    All arms get the same data in the same order and, unless they have separate recipes, the same number of steps.

    Attributes:
        arms: Arms, in the order in which they run for each seed.
        baseline: Arm with which all others are compared.
        seeds: Seeds. Empty if the plan only searches for settings, with the seeds of `tuning`.
        tuning: Seeds for choosing points of grids. Required if an arm has a grid.
        pretrain, finetune: Recipe files, relative to the plan's folder. A stage is named after its file.
        steps: Number of pretraining steps, in place of the recipe's number. For an arm with separate recipes, the
            number changes by the same factor.
        precision, muon_precision: Replacements for `auto` in the recipes. Rows with other precisions do not count.
        showcase: Test split of the pretraining recipe. The report shows `num_captions` of its images with the caption
            of each model, and a third as many images of the endpoints' split for each fine-tuning.
        without: Words for an additional measurement on the showcase, without the images that have one of these words in
            a caption.
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
    muon_precision: MuonPrecision = "auto"
    showcase: str
    num_captions: int = 6
    without: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DemoPlan(Plan):
    """Plan of a demo: a model, its baseline, and one seed.

    Attributes:
        queries: Texts that the report searches for in the showcase, with `num_hits` images each.
        schedules: Numbers of pretraining steps in ascending order, each with the R@1 that it reached on the showcase
            (None if it was not measured). The demo uses the longest schedule that fits the available time. If there are
            no schedules, the number of steps in the recipe is used.
    """

    queries: tuple[str, ...]
    num_hits: int = 8
    schedules: dict[int, float | None] = field(default_factory=dict)


def stage_names(plan: Plan) -> tuple[str, ...]:
    """Return the names of the stages, pretraining first."""
    return tuple(Path(recipe).stem for recipe in (plan.pretrain, *plan.finetune))


def showcase_of(plan: Plan, stage: str) -> tuple[str, int]:
    """Return the test split whose images a report shows for a stage, and how many of its images are shown."""
    if stage == stage_names(plan)[0]:
        return plan.showcase, plan.num_captions
    return plan.endpoints.split, plan.num_captions // 3


def find_arm(plan: Plan, name: str) -> Arm:
    """Return the arm with the given name.

    Raises:
        UserError: If the plan has no such arm. The message suggests the most similar name.
    """
    arms = {arm.name: arm for arm in plan.arms}
    if name not in arms:
        raise UserError(f"the plan has no arm '{name}'; {suggest_name(name, arms)}")
    return arms[name]


def with_baseline(plan: Plan, baseline: str | None) -> Plan:
    """Return the plan with another arm as the baseline. If `baseline` is None, return the plan unchanged.

    The original baseline is moved to the end of the arms, because a report is about the first arm that is not the
    baseline.

    Raises:
        UserError: If the plan has no such arm.
    """
    if baseline is None:
        return plan
    arms = sorted(plan.arms, key=lambda arm: arm.name == plan.baseline)
    return replace(plan, arms=tuple(arms), baseline=find_arm(plan, baseline).name)


def split_endpoint(endpoint: str) -> tuple[str, str]:
    """Return the phase and the metric in an endpoint's name."""
    phase, _, metric = endpoint.partition("/")
    return phase, metric


def scores_captions(plan: Plan) -> bool:
    """Return whether any endpoint is a caption score, so that the test splits must be captioned."""
    return any(split_endpoint(endpoint)[1] in CAPTION_SCORES for endpoint in plan.endpoints.all)


def missing_scores(plan: Plan, row: LedgerRow) -> list[str]:
    """Return the caption scores that the plan's endpoints need, but that a run does not have.

    A row that was copied from another study has only the scores that the other study requires. All other metrics are
    always measured.
    """
    if row.kind == "diverged" or row.seed not in plan.seeds:
        return []
    phase = PHASES[0] if row.stage == stage_names(plan)[0] else PHASES[1]
    needed = [metric for where, metric in map(split_endpoint, plan.endpoints.all) if where == phase]
    measured = row.metrics.get(plan.endpoints.split, {})
    return [metric for metric in needed if metric in CAPTION_SCORES and metric not in measured]


# --- Grids


def search_seeds(plan: Plan) -> tuple[int, ...]:
    """Return the seeds with which the points of the grids are run."""
    return () if plan.tuning is None else plan.tuning.seeds


def points_of(plan: Plan, arm: Arm, stage: str) -> list[dict[str, object]]:
    """Return the candidate points for the settings of an arm. If the arm has no grid, return a single empty point."""
    source = arms_tuned_together(plan, arm)[0]
    grid = source.grid if stage == stage_names(plan)[0] else source.finetune_grid
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def arms_tuned_together(plan: Plan, arm: Arm) -> list[Arm]:
    """Return the arms whose trials choose the settings of an arm."""
    if plan.tuning is None or not plan.tuning.shared:
        return [arm]
    return [each for each in plan.arms if each.grid or each.finetune_grid]


def point_title(settings: Settings) -> str:
    """Return a readable form of a point, such as `lr 0.003, weight_decay 0.1`."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in settings.items())


# --- Reading a plan


def read_plan(path: Path, kind: type[AnyPlan]) -> AnyPlan:
    """Read a plan, and make the paths of its recipes absolute. Neither recipes nor data are read.

    Args:
        path: YAML file.
        kind: `Plan`, or a subclass with additional keys.

    Raises:
        UserError: If the file is missing or not YAML, a key or value is invalid, or earlier code has run the plan.
    """
    content = read_yaml(path, "plan")
    listed = content.get("arms") if isinstance(content, dict) else None
    if (folder_of_plan(path) / EARLIER_LEDGER).exists():
        raise UserError(
            f"{path}: earlier code has run this plan; use commit 477a50ee, or ed1405e6 if an arm has the key 'variant'"
        )
    if isinstance(content, dict) and isinstance(listed, list):
        content = {**content, "arms": [{"name": arm} if isinstance(arm, str) else arm for arm in listed]}
    plan = from_dict(kind, content, str(path))
    for error in _validation_errors(plan):
        raise UserError(f"{path}: {error}")
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
        UserError: If the folder has no plan, or the plan is invalid.
    """
    path = folder / PLAN_FILE
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; pass the folder that `grr-coca study run` writes to")
    if not path.exists():
        raise UserError(
            f"{folder}: not a study ({PLAN_FILE} is missing); pass the folder that `grr-coca study run` writes to"
        )
    content = read_yaml(path, "plan")
    is_demo = isinstance(content, dict) and "queries" in content
    return read_plan(path, DemoPlan if is_demo else Plan)


def folder_of_plan(path: Path) -> Path:
    """Return the default folder of a plan's runs."""
    return path.parent if path.name == PLAN_FILE else path.with_suffix("")


def _validation_errors(plan: Plan) -> Iterator[str]:
    """Yield the errors in the values of a plan, without reading recipes."""
    names = [arm.name for arm in plan.arms]
    yield from _duplicates(names, "arms")
    yield from _duplicates([arm.title or arm.name for arm in plan.arms], "arms: titles")
    yield from _duplicates(plan.seeds, "seeds")
    yield from _duplicates(stage_names(plan), "stages (the file names of the recipes)")
    if len(names) < 2:
        yield f"arms: a comparison needs two or more, got {len(names)}"
    for name in names:
        if not name or name.startswith(".") or "/" in name or "\\" in name:  # hidden files are not rows
            yield (
                f"arms: '{name}' cannot begin the names of files: it is empty, begins with a dot or has a slash; pass "
                "another name"
            )
    for arm in plan.arms:
        try:
            get_preset(arm.preset_name, "tiny")
        except UserError as error:
            yield f"arms: {error}"
    if plan.baseline not in names:
        yield f"baseline: the plan has no arm '{plan.baseline}'; {suggest_name(plan.baseline, names)}"
    if min(plan.seeds, default=0) < 0 or not (plan.seeds or plan.tuning):
        yield "seeds: must be one or more integers of at least 0"
    if plan.steps is not None and plan.steps < 1:
        yield f"steps must be at least 1, got {plan.steps}"
    for arm in plan.arms:
        yield from (f"arms: {arm.name}: {error}" for error in _key_errors(plan, arm))
    if plan.num_captions < 0:
        yield f"num_captions must be at least 0, got {plan.num_captions}"
    yield from _duplicates(plan.endpoints.all, "endpoints")
    if not plan.endpoints.primary:
        yield "endpoints: primary must have one or more endpoints"
    phases = PHASES if plan.finetune else PHASES[:1]
    known = [f"{phase}/{metric}" for phase in phases for metric in METRICS]
    for endpoint in plan.endpoints.all:
        if endpoint not in known:
            yield f"endpoints: unknown '{endpoint}'; {suggest_name(endpoint, known)}"
    if plan.tuning is not None:
        yield from (f"tuning: {error}" for error in _tuning_errors(plan, plan.tuning))


def _key_errors(plan: Plan, arm: Arm) -> Iterator[str]:
    """Yield the errors in the overrides and grids of an arm."""
    grids = {"grid": arm.grid, "finetune_grid": arm.finetune_grid}
    for name, keys in {
        "overrides": arm.overrides.keys(),
        **{name: grid.keys() for name, grid in grids.items()},
    }.items():
        for key, decided_by in (("seed", "the plan's 'seeds'"), ("model.preset", "an arm's 'preset'")):
            if key in keys:
                yield f"{name}: {key} is set by {decided_by}; remove it here"
    for name, grid in grids.items():
        for key, values in grid.items():
            yield from _duplicates(values, f"{name}: {key}")
            if not values:
                yield f"{name}: {key}: must have one or more values"
            if any(isinstance(value, Mapping) for value in values):
                yield f"{name}: {key} is a group of keys; set one key, as `{key}.NAME`"
    for key in arm.overrides:
        if any(key == tried or key.startswith(f"{tried}.") for tried in arm.grid):
            yield f"overrides: {key} is also in the grid, which replaces this value; remove one of the two"
    if (arm.grid or arm.finetune_grid) and plan.tuning is None:
        yield "a grid needs separate seeds, which choose the best point; add the plan's key `tuning: {seeds: [100]}`"
    if arm.finetune_grid and not plan.finetune:
        yield "finetune_grid: the plan has no fine-tuning"


def _tuning_errors(plan: Plan, tuning: Tuning) -> Iterator[str]:
    if not tuning.seeds or min(tuning.seeds) < 0:
        yield "seeds: must be one or more integers of at least 0"
    yield from _duplicates(tuning.seeds, "seeds")
    if tuning.steps is not None and tuning.steps < 1:
        yield f"steps must be at least 1, got {tuning.steps}"
    for seed in tuning.seeds:
        if seed in plan.seeds:
            yield f"seed {seed} is also one of the plan's seeds, which must not choose settings; set another"
    grids = [(arm.grid, arm.finetune_grid) for arm in plan.arms if arm.grid or arm.finetune_grid]
    if not grids:
        yield "no arm has a grid; add one, or remove this key"
    if tuning.shared and any(grid != grids[0] for grid in grids):
        yield "shared: the grids of the arms differ; make them equal, or set shared: false"


def _duplicates(items: Sequence[object], where: str) -> Iterator[str]:
    yield from (f"{where}: {item}: duplicate; remove one" for i, item in enumerate(items) if item in items[:i])
