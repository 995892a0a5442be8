"""Read the plans and ledgers of studies, and check each row against its plan and against itself.

Nothing of the package is imported: plans and rows are read as YAML and JSON.
"""

import json
import math
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

STUDIES = Path(__file__).parent
ROOT = STUDIES.parent

Rows = dict[tuple[str, int, str], Any]
"""Rows of runs by arm, seed and stage."""

UNFINISHED: tuple[str, ...] = ()
"""Studies whose plan is not run to its end. Their pages say how many rows there are."""

OTHER_KERNEL = ("adamw_long/2400_parts_one_kernel",)
"""Studies that repeat runs with other routines for matrices, which rows do not name."""


# --- Plans


@cache
def plan_of(study: str) -> dict[str, Any]:
    """Return the plan of a study. Arms are mappings, by name."""
    plan: dict[str, Any] = yaml.safe_load((STUDIES / study / "plan.yaml").read_text(encoding="utf-8"))
    arms = [{"name": arm} if isinstance(arm, str) else arm for arm in plan["arms"]]
    return plan | {"arms": {arm["name"]: arm for arm in arms}}


def stages_of(study: str) -> list[str]:
    """Return the stages of a study in order, pretraining first."""
    plan = plan_of(study)
    return [Path(name).stem for name in (plan["pretrain"], *(plan.get("finetune") or []))]


@cache
def _read_recipe(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def recipe_of(study: str, arm: str, stage: str) -> dict[str, Any]:
    """Return the recipe of an arm in a stage, with the arm's overrides, which hold for pretraining only."""
    plan, stages = plan_of(study), stages_of(study)
    names = [plan["pretrain"], *(plan.get("finetune") or [])]
    found = plan["arms"][arm]
    path = STUDIES / study / names[stages.index(stage)]
    if found.get("recipes"):
        path = path.parent / found["recipes"] / path.name
    recipe = _read_recipe(path) | {"path": path}
    if stage == stages[0]:
        if plan.get("steps"):
            recipe["schedule"] = recipe["schedule"] | {"steps": plan["steps"]}
        for key, value in (found.get("overrides") or {}).items():
            section, _, name = key.partition(".")
            recipe[section] = recipe.get(section, {}) | {name: value}
    return recipe


@cache
def captions(pattern: str) -> tuple[str, ...]:
    """Return the captions in the tar shards that a pattern matches, in order."""
    shards, found = sorted(ROOT.glob(pattern)), []
    assert shards, f"{pattern}: no shards"
    for shard in shards:
        with tarfile.open(shard) as tar:
            found += [tar.extractfile(file).read().decode() for file in tar if file.name.endswith(".txt")]  # type: ignore[union-attr]
    return tuple(found)


@dataclass(frozen=True)
class Data:
    """Pairs in shards of this repository whose captions have a word; a placeholder gives their number: `6,597`."""

    pattern: str
    word: str = ""

    def __format__(self, asked: str) -> str:
        return f"{sum(self.word in caption for caption in captions(self.pattern)):,}"


# --- Rows


class Row(dict[str, Any]):
    """A row of a ledger. `place` is its file and line."""

    place: str


@cache
def all_rows(study: str) -> tuple[Row, ...]:
    """Return all rows of a study's ledger: runs, trials and choices. Newer ledgers have a file for each row.

    Raises:
        ValueError: A line is not a row. The message has its file and number.
    """
    found = []
    for path in ledger_of(study):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            place = f"{path.relative_to(ROOT).as_posix()}:{number}"
            try:
                row = Row(json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{place}: not a row of a ledger: {error}") from error
            row.place = place
            found.append(row)
    return tuple(found)


def ledger_of(study: str) -> list[Path]:
    """Return the files that have the rows of a study, one row a line."""
    return [*(STUDIES / study).glob("runs.jsonl"), *sorted((STUDIES / study / "rows").glob("*.json"))]


@cache
def rows_of(study: str) -> Rows:
    """Return the runs of a study by arm, seed and stage."""
    return {(row["arm"], row["seed"], row["stage"]): row for row in all_rows(study) if row["kind"] == "run"}


def studies() -> list[str]:
    """Return the names of all studies with a ledger."""
    folders = {path.parent for path in STUDIES.rglob("plan.yaml")}
    names = (folder.relative_to(STUDIES).as_posix() for folder in folders)
    return sorted(name for name in names if ledger_of(name))


# --- Checks


def errors_of_ledger(study: str) -> Iterator[str]:
    """Yield what is wrong with the rows of a study, one line each.

    A row without a field, or with another type of value in it, is reported alone: the other checks read the fields.
    """
    try:
        rows = all_rows(study)
    except ValueError as error:
        yield str(error)
        return
    odd = [f"{_name(row)}: {error}" for row in rows for error in _errors_of_fields(row)]
    if odd:
        yield from odd
        return
    yield from _errors_of_set(study)
    for row in rows:
        yield from (f"{_name(row)}: {error}" for error in [*_errors_of_plan(study, row), *_errors_of_numbers(row)])
    yield from _errors_of_choices(study)


def _name(row: Row) -> str:
    return f"{row.place}: {row.get('kind')} {row.get('arm')}, seed {row.get('seed')}, {row.get('stage')}"


FIELDS: dict[str, type] = {
    **dict.fromkeys(("kind", "arm", "stage", "recipe_digest", "data_digest", "precision", "commit", "machine"), str),
    **dict.fromkeys(("seed", "steps", "parameters", "image_encoder_parameters", "flops_per_pair"), int),
    **dict.fromkeys(("settings", "metrics", "values"), dict),
    "curve": list,
}
LOSSES = ("coca_loss", "contrastive_loss", "captioning_loss")
RECALLS = tuple(f"{direction}R@{k}" for direction in ("", "image_to_text/") for k in (1, 5, 10))
METRICS = (*LOSSES, *RECALLS, "contrastive_loss_refitted", "perplexity", "num_pairs", "contrastive_batch_size")
SINGLE = ("nll", "tokens", "rank", "contrastive_batches", "contrastive_batches_refitted")
"""What each row has: fields with their types, the metrics of a split, and the values of its captions and batches."""


def _errors_of_fields(row: Row) -> Iterator[str]:
    """Yield fields that the other checks cannot read."""
    odd = [f"{name} is not of type {kind.__name__}" for name, kind in FIELDS.items() if type(row.get(name)) is not kind]
    if odd:
        yield from odd
        return
    numbers: dict[str, Any] = {}
    for split, found in row["metrics"].items():
        numbers |= {f"{split}, {name}": [_get(found, name)] for name in METRICS}
    for split, found in row["values"].items():
        numbers |= {f"values of {split}, {name}": _get(found, name) for name in SINGLE}
    for number, entry in enumerate(row["curve"]):
        train = [_get(_get(entry, "train"), name) for name in ("contrastive", "captioning")]
        val = [_get(_get(entry, "val"), name) for name in LOSSES]
        numbers[f"entry {number} of the curve"] = [_get(entry, "step"), *train, *val]
    for name, found in numbers.items():
        if not isinstance(found, list) or not all(type(each) in (int, float) and math.isfinite(each) for each in found):
            yield f"{name}: not a number"


def _get(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, dict) else None


def _errors_of_set(study: str) -> Iterator[str]:
    """Each run of the plan exists exactly once, and no other. Studies in `UNFINISHED` may lack runs."""
    plan, found = plan_of(study), [row for row in all_rows(study) if row["kind"] == "run"]
    keys = [(row["arm"], row["seed"], row["stage"]) for row in found]
    planned = set(product(plan["arms"], plan["seeds"], stages_of(study)))
    odd = (row for row in all_rows(study) if row["kind"] not in ("run", "trial", "choice"))
    yield from (f"{_name(row)}: unknown kind of row" for row in odd)
    twice = [row for row, key in zip(found, keys, strict=True) if keys.count(key) > 1]
    yield from (f"{_name(row)}: one of two rows of this run" for row in twice)
    yield from (f"{_name(row)}: not in the plan" for row, key in zip(found, keys, strict=True) if key not in planned)
    if study not in UNFINISHED:
        runs = (f"{arm}, seed {seed}, {stage}" for arm, seed, stage in sorted(planned - {*keys}))
        yield from (f"studies/{study}: lacks the row of run {run}" for run in runs)


def _errors_of_plan(study: str, row: Any) -> Iterator[str]:
    plan, stages = plan_of(study), stages_of(study)
    digests = json.loads((STUDIES / study / "digests.json").read_text(encoding="utf-8"))
    if row["arm"] not in plan["arms"] or row["stage"] not in stages:
        yield "arm or stage is not in the plan"
        return
    recipe = recipe_of(study, row["arm"], row["stage"])
    tuning = plan.get("tuning") or {}
    steps = recipe["schedule"]["steps"]
    if row["kind"] == "run":
        if row["recipe_digest"] not in _listed(digests["recipes"].get(row["arm"], {}).get(row["stage"])):
            yield "recipe_digest differs from digests.json"
    else:
        if row["stage"] == stages[0] and tuning.get("steps"):  # shorter in proportion for arms with their own recipes
            usual = plan.get("steps") or _read_recipe(STUDIES / study / plan["pretrain"])["schedule"]["steps"]
            steps = round(tuning["steps"] * steps / usual)
        tried = digests.get("trials", {}).get(row["arm"], {}).get(row["stage"])
        if tried is not None and row["recipe_digest"] not in tried:
            yield "recipe_digest is not in digests.json"
        if row["seed"] != tuning.get("seed"):
            yield "seed is not the tuning seed of the plan"
    if row["data_digest"] != digests["data"].get(row["stage"]):
        yield "data_digest differs from digests.json"
    if row["steps"] != steps:
        yield f"{row['steps']} steps, the plan has {steps}"
    if row.get("start_data_digest") not in (
        None,
        digests["data"].get(stages[0]) if row["stage"] != stages[0] else None,
    ):
        yield "start_data_digest differs from digests.json"
    if row["precision"] != plan["precision"]:
        yield f"precision {row['precision']}, the plan has {plan['precision']}"
    curve = [entry["step"] for entry in row.get("curve", [])]
    if curve and (curve != sorted({*curve}) or curve[-1] != row["steps"]):
        yield "the steps of the curve do not rise to the last step"


def _listed(digests: str | list[str] | None) -> list[str]:
    """Return the digests of an arm in a stage: a list in newer ledgers, one in earlier ones."""
    return [digests] if isinstance(digests, str) else digests or []


TOLERANCES = {"captioning_loss": 5e-5, "contrastive_loss": 1e-5, "contrastive_loss_refitted": 1e-5, "CIDEr-D": 1e-4}
"""What rounding of single values may add up to; recalls must be exact."""


def _errors_of_numbers(row: Any) -> Iterator[str]:
    """Losses, recalls, curves and values of single images agree with each other."""
    metrics = row.get("metrics", {})
    for split, found in metrics.items():
        yield from (f"{split}: {error}" for error in _errors_of_losses(found, 1e-6))
        if not math.isclose(found["perplexity"], math.exp(found["captioning_loss"]), rel_tol=1e-6):
            yield f"{split}: perplexity is not exp(captioning_loss)"
        for direction in ("", "image_to_text/"):
            recalls = [found[f"{direction}R@{k}"] for k in (1, 5, 10)]
            if recalls != sorted(recalls) or any(abs(r * found["num_pairs"] % 1 - 0.5) < 0.499 for r in recalls):
                yield f"{split}: {direction}R@k is not a rising number of hits"
        if row.get("values", {}).get(split):
            yield from (f"{split}: {error}" for error in _errors_of_values(found, row["values"][split]))
    for entry in row.get("curve", []):
        yield from (f"val at step {entry['step']}: {error}" for error in _errors_of_losses(entry.get("val", {}), 2e-5))
    last = row["curve"][-1].get("val", {}) if row.get("curve") else {}
    for name, number in last.items():
        if abs(number - metrics["val"][name]) > 1e-5:
            yield f"val: {name} differs from the end of the curve"
    if "val_images" in metrics and metrics["val_images"] != {**metrics["val_images"], **metrics["val"]}:
        yield "val and val_images are one split with different metrics"


def _errors_of_losses(found: Mapping[str, float], tolerance: float) -> Iterator[str]:
    if found and abs(found["coca_loss"] - found["contrastive_loss"] - 2 * found["captioning_loss"]) > tolerance:
        yield "coca_loss is not contrastive_loss + 2 captioning_loss"


def _errors_of_values(metrics: Mapping[str, float], values: Mapping[str, Any]) -> Iterator[str]:
    single = {
        "captioning_loss": np.sum(values["nll"]) / np.sum(values["tokens"]),
        "contrastive_loss": np.mean(values["contrastive_batches"]),
        **{f"R@{k}": np.mean(np.array(values["rank"]) < k) for k in (1, 5, 10)},
    }
    for name, key in (("contrastive_loss_refitted", "contrastive_batches_refitted"), ("CIDEr-D", "cider_d")):
        if key in values:
            single[name] = np.mean(values[key])
    for name, found in single.items():
        if abs(found - metrics[name]) > TOLERANCES.get(name, 1e-9):
            yield f"{name} is {metrics[name]:.6f}, and {found:.6f} by its single values"
    if len(values["nll"]) != metrics["num_pairs"]:
        yield f"{len(values['nll'])} captions, and num_pairs is {metrics['num_pairs']:.0f}"


def _errors_of_choices(study: str) -> Iterator[str]:
    """Settings of runs are the best of the trials, by the mean CoCa loss on `val` over arms that are tuned together."""
    tuning = plan_of(study).get("tuning")
    if not tuning:
        return
    trials = [row for row in all_rows(study) if row["kind"] == "trial"]
    for row in all_rows(study):
        copied = [trial for trial in trials if _facts(trial) == _facts(row)]
        if row["kind"] == "choice" and not copied:
            yield f"{_name(row)}: is not one of the trials"
    for (arm, _, stage), row in rows_of(study).items():
        together = tuning.get("arms") or [arm]
        losses: dict[str, list[float]] = {}
        for trial in trials:
            if trial["stage"] == stage and trial["arm"] in together:
                losses.setdefault(json.dumps(trial["settings"], sort_keys=True), []).append(
                    trial["metrics"]["val"]["coca_loss"]
                )
        complete = {settings: np.mean(found) for settings, found in losses.items() if len(found) == len(together)}
        if complete and json.loads(min(complete, key=lambda settings: complete[settings])) != row["settings"]:
            yield f"{_name(row)}: has settings that are not the best of the trials"


def _facts(row: Any) -> Any:
    """Return all that a row says, except of which kind it is and what only one kind has."""
    return {key: value for key, value in row.items() if key not in ("kind", "curve", "values", "captions")}


def errors_between_rows() -> Iterator[str]:
    """Yield contradictions between rows of all studies, one line each.

    Rows of an arm have equal sizes and settings. Equal seeds have equal initial values of equal parameters, equal data
    orders, and equal numbers of FLOPs. Splits have equal sizes. Equal runs have equal results.
    """
    known: dict[Any, tuple[Any, str]] = {}
    for study in studies():
        for row in all_rows(study):
            for key, fact in _constants(study, row):
                first, where = known.setdefault(key, (fact, row.place))
                if fact != first:
                    yield f"{_name(row)}: {key[0]} differs from {where}"


def _constants(study: str, row: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Facts of a row by what determines them."""
    arm, seed, stage, data = row["arm"], row["seed"], row["stage"], row["data_digest"]
    for name in ("parameters", "image_encoder_parameters", "flops_per_pair"):
        yield (name, study, arm, stage), row[name]
    if row["kind"] == "run":
        yield ("settings", study, arm, stage), row["settings"]
        if row.get("training_flops") is not None:
            yield ("training_flops", study, arm, stage), row["training_flops"]
    for parameter, digest in row.get("initial_weights", {}).items():
        is_position = parameter.startswith("image_encoder.position.")
        overrides = plan_of(study)["arms"].get(arm, {}).get("overrides") or {}
        filled = overrides.get("model.image_positions") if is_position else None
        yield (f"initial_weights of {parameter}", None if filled else seed, filled), digest
    if study in UNFINISHED:  # the table of finished studies names commits
        yield ("commit", study), row["commit"]
    yield ("fields", study, arm, row["kind"], stage, row["commit"]), sorted(row)
    yield ("steps of the curve", study, arm, row["kind"], stage), [entry["step"] for entry in row.get("curve", [])]
    if row.get("initial_weights"):
        yield ("names of initial_weights", study, arm, stage), sorted(row["initial_weights"])
    for caption in row.get("captions", []):
        yield (f"references of {caption['image']}", study, stage), caption["references"]
    if "data_order" in row:
        yield ("data_order", seed, stage, data, row["steps"]), row["data_order"]
    for split, metrics in row.get("metrics", {}).items():
        for metric, number in metrics.items():
            if metric in ("num_pairs", "contrastive_batch_size") or metric.startswith("chance/"):
                yield (f"{split} {metric}", stage, data), number
        if "values" in row and split in row["values"]:
            yield (f"{split} tokens", study, stage), row["values"][split]["tokens"]
    if "test" in row.get("metrics", {}):  # no two runs end alike
        yield ("run with this loss", row["metrics"]["test"]["coca_loss"]), (row["recipe_digest"], data, seed)
    yield (
        ("result", row["kind"], row["recipe_digest"], data, seed, row["commit"], row["machine"], study in OTHER_KERNEL),
        (row["metrics"], row["values"]),
    )
