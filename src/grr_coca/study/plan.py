"""The plan that lies in a study's folder, a demo's too. Reading it needs neither the data nor torch.

The plan of a study, as a person writes it. Reading it needs neither the data nor torch.

What a row of the right run may lack: one that was copied from another study has the scores that that one needed.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from grr_coca.errors import UserError, nearest
from grr_coca.presets import get_preset
from grr_coca.structure import from_dict, read_yaml
from grr_coca.study.ledger import PLAN_FILE, LedgerRow
from grr_coca.train.recipe import CAPTION_SCORES, Precision, Score

PHASES = ("pretraining", "finetuning")
RANKING_METRICS = tuple(f"{way}R@{k}" for way in ("", "image_to_text/") for k in (1, 5, 10))
LOSS_METRICS = ("contrastive_loss", "contrastive_loss_refitted", "captioning_loss", "perplexity", "coca_loss")
METRICS = (*LOSS_METRICS, *RANKING_METRICS, *CAPTION_SCORES)
"""What an endpoint may be, under the names that rows of the ledger have."""

AnyPlan = TypeVar("AnyPlan", bound="Plan")


Variant = Literal["input_rope", "mixed_rope", "learned_positions"]
"""Changes of a model that are arms of studies and no choices of the product; see `study.variants`."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the models that are compared.

    - `title`: what a report calls the arm; None: its parts, or its name
    - `preset`: None if the arm has the preset's name
    - `overrides`: other values for some keys of the pretraining recipe, such as `model.qk_norm: rms`
    - `variant`: how the model is changed after it was built
    - `recipes`: a folder with recipes of the same file names, by which the arm is trained instead of the plan's. They
      may differ in everything but the data, the tokenizer, the weights of the losses and the batches of evaluation.
      Such an arm is another way to train, so the plan must see to it that the costs are equal
    """

    name: str
    title: str | None = None
    preset: str | None = None
    overrides: dict[str, object] = field(default_factory=dict)
    variant: Variant | None = None
    recipes: str | None = None

    @property
    def preset_name(self) -> str:
        """The preset that the arm is made of."""
        return self.preset or self.name


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The same search for every arm: each combination of the values that `pretrain` gives for keys of the pretraining
    recipe, trained with `seed`, and the best by `score` on the validation split; then the same with `finetune` for each
    fine-tuning, from the best pretrained model. Test splits are not looked at. `steps`: of pretraining in a trial by
    the plan's recipe, and by an arm's own an equal share of its steps; None: all of them.

    `arms`: these are tried, and what is best for them on average is given to all arms of the study. None: every arm is
    tried, and has the settings that are best for itself. Where several settings are nearly equal, chance chooses among
    them; with settings of their own, arms then differ in more than their parts.
    """

    seed: int
    arms: tuple[str, ...] = ()
    steps: int | None = None
    pretrain: dict[str, tuple[object, ...]] = field(default_factory=dict)
    finetune: dict[str, tuple[object, ...]] = field(default_factory=dict)
    score: Score = "coca_loss"

    @property
    def metric(self) -> str:
        """The score's key in the rows of a ledger."""
        return self.score.removeprefix("text_to_image/")


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """What the study is about, named before it is run: `PHASE/METRIC`, where the phase is `pretraining`, or
    `finetuning` for the mean of all fine-tunings. Holm's correction is over the primary ones. `split`: the test split
    that they are read from."""

    primary: tuple[str, ...]
    secondary: tuple[str, ...] = ()
    split: str = "test"

    @property
    def all(self) -> tuple[str, ...]:
        """Primary and secondary ones."""
        return (*self.primary, *self.secondary)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study: every arm with every seed goes through pretraining and then, from that model, each fine-tuning. All arms
    have the same data in the same order, settings from the same search and, but for arms with recipes of their own, the
    same steps.

    `arms`: in the order in which they are run, by seed; `baseline`: the one that the others are held against.
    `seeds`: none, if the plan is only to find settings.
    `pretrain`, `finetune`: recipes, relative to the plan's folder; each stage has the name of its file.
    `steps`: of pretraining, in place of the recipe's; of arms with recipes of their own, an equal share.
    `precision`, `muon_precision`: in place of every `auto` of the recipes; rows of different precisions are not of the
    same study.
    `showcase`: a test split of the pretraining recipe, of which `num_captions` images are shown with what each model
    says; of each fine-tuning a third as many. `without`: words; the showcase is measured once more without images
    that have one of them in a caption.
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


def stage_names(plan: Plan) -> tuple[str, ...]:
    """The stages, pretraining first."""
    return tuple(Path(recipe).stem for recipe in (plan.pretrain, *plan.finetune))


def showcase_of(plan: Plan, stage: str) -> tuple[str, int]:
    """The test split of a stage's recipe whose images are captioned to be shown, and how many of them."""
    if stage == stage_names(plan)[0]:
        return plan.showcase, plan.num_captions
    return plan.endpoints.split, plan.num_captions // 3


def arm_named(plan: Plan, name: str) -> Arm:
    """An arm by its name.

    Raises:
        UserError: there is none; names the nearest.
    """
    arms = {arm.name: arm for arm in plan.arms}
    if name not in arms:
        raise UserError(f"the plan has no arm '{name}'; {nearest(name, arms)}")
    return arms[name]


def compared_with(plan: Plan, baseline: str | None) -> Plan:
    """The plan with another arm as the baseline; None: the plan itself. The baseline that it names comes last among the
    arms, so that the first of the others, which a report asks about, is not that one.

    Raises:
        UserError: it has no such arm.
    """
    if baseline is None:
        return plan
    arms = sorted(plan.arms, key=lambda arm: arm.name == plan.baseline)
    return replace(plan, arms=tuple(arms), baseline=arm_named(plan, baseline).name)


def split_endpoint(endpoint: str) -> tuple[str, str]:
    """Phase and metric."""
    phase, _, metric = endpoint.partition("/")
    return phase, metric


def scores_captions(plan: Plan) -> bool:
    """Whether an endpoint needs the test splits to be captioned."""
    return any(split_endpoint(endpoint)[1] in CAPTION_SCORES for endpoint in plan.endpoints.all)


def read_plan(path: Path, kind: type[AnyPlan]) -> AnyPlan:
    """Read a plan; the paths of its recipes become absolute. Neither recipes nor data are looked at.

    Args:
        path: a YAML file.
        kind: `Plan`, or a kind of it that has more keys.

    Raises:
        UserError: no such file, not YAML, or a key or value that a plan does not have.
    """
    plan = from_dict(kind, _with_arms_spelled_out(read_yaml(path, "plan")), str(path))
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


def _with_arms_spelled_out(content: object) -> object:
    """An arm that is its preset and nothing else is written as a name."""
    if not isinstance(content, Mapping) or not isinstance(content.get("arms"), list):
        return content
    arms = [{"name": arm} if isinstance(arm, str) else arm for arm in content["arms"]]
    return {**content, "arms": arms}


def _check(plan: Plan, path: Path) -> None:
    """What can be wrong with a plan by itself."""
    names = [arm.name for arm in plan.arms]
    _require_once(names, f"{path}: arms")
    _require_once([arm.title or arm.name for arm in plan.arms], f"{path}: arms: titles")
    _require_once(plan.seeds, f"{path}: seeds")
    _require_once(stage_names(plan), f"{path}: every recipe needs a file name of its own")
    if len(names) < 2:
        raise UserError(f"{path}: arms: two or more are needed to compare")
    for name in names:
        if name in ("", ".", "..") or "/" in name:
            raise UserError(f"{path}: arms: '{name}' cannot be the name of a folder, as the name of an arm is")
    for arm in plan.arms:
        try:
            get_preset(arm.preset_name, "tiny")
        except UserError as error:
            raise UserError(f"{path}: arms: {error}") from error
    if plan.baseline not in names:
        raise UserError(f"{path}: baseline: the plan has no arm '{plan.baseline}'; {nearest(plan.baseline, names)}")
    if min(plan.seeds, default=0) < 0 or not (plan.seeds or plan.tuning):
        raise UserError(f"{path}: seeds: give one or more, each 0 or more")
    if plan.num_captions < 0:
        raise UserError(f"{path}: num_captions: {plan.num_captions} is out of range; give 0 or more")
    _check_endpoints(plan, path)
    if plan.tuning is not None:
        _check_tuning(plan, plan.tuning, path)


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
    for key, value, least in (("seed", tuning.seed, 0), ("steps", tuning.steps, 1)):
        if value is not None and value < least:
            raise UserError(f"{path}: tuning: {key}: {value} is out of range; give {least} or more")
    if tuning.seed in plan.seeds:
        raise UserError(f"{path}: tuning: seed {tuning.seed} is one of the study's; give another, so that it is unseen")
    if tuning.score in CAPTION_SCORES:
        raise UserError(f"{path}: tuning: score {tuning.score} is not measured in trials; use coca_loss, or a recall")
    for name, grid in (("pretrain", tuning.pretrain), ("finetune", tuning.finetune)):
        for key, values in grid.items():
            _require_once(values, f"{path}: tuning: {name}: {key}")
            if not values:
                raise UserError(f"{path}: tuning: {name}: {key}: give one or more values")
            if any(isinstance(value, Mapping) for value in values):
                raise UserError(f"{path}: tuning: {name}: {key}: names a group of keys; name one key, as `{key}.NAME`")
    for arm in plan.arms:
        for key in arm.overrides:
            if any(key == tuned or key.startswith(f"{tuned}.") for tuned in tuning.pretrain):
                raise UserError(
                    f"{path}: arms: {arm.name}: overrides: {key} is tuned too, which would replace this value; keep one"
                )
    if tuning.finetune and not plan.finetune:
        raise UserError(f"{path}: tuning: finetune: the plan has no fine-tuning")


def _require_once(items: Iterable[Any], where: str) -> None:
    seen: list[Any] = []  # not a set: a value may be a list, such as `betas`
    for item in items:
        if item in seen:
            raise UserError(f"{where}: {item} is there twice")
        seen.append(item)


def lacking_scores(plan: Plan, row: LedgerRow) -> list[str]:
    """Scores of captions that endpoints need of a run, and that were not measured. Other metrics every run has, but for
    numbers that are not finite."""
    phase = PHASES[0] if row.stage == stage_names(plan)[0] else PHASES[1]
    needed = [metric for where, metric in map(split_endpoint, plan.endpoints.all) if where == phase]
    measured = row.metrics.get(plan.endpoints.split, {})
    lacking = [metric for metric in needed if metric in CAPTION_SCORES and metric not in measured]
    return lacking if row.kind == "run" else []


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
