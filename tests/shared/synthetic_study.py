"""Studies that nobody ran: numbers are drawn at random around a truth that a test knows, or none are trained."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from grr_coca.common.errors import DivergedError
from grr_coca_study.ledger import Digests, write_digests
from grr_coca_study.rows import CaptionedExample, CurvePoint, LedgerRow, RowFolder, row_name
from grr_coca_study.running.agenda import Task

STAGES = ("pictograms", "health", "clipart", "glyphs")
STEPS = (600, 60, 60, 100)
LEVELS = {"pictograms": (1.5, 1.1), "health": (3.5, 3.4), "clipart": (3.7, 3.9), "glyphs": (2.0, 1.4)}
"""Contrastive and captioning loss of the baseline on `test`."""
PARTS_OF_PRESET = {
    "baseline_coca": (),
    "baseline_rms": ("RMSNorm",),
    "baseline_geglu": ("GEGLU",),
    "baseline_rope_2d": ("RoPE",),
    "baseline_rms_geglu": ("RMSNorm", "GEGLU"),
    "baseline_rms_rope_2d": ("RMSNorm", "RoPE"),
    "baseline_geglu_rope_2d": ("GEGLU", "RoPE"),
    "grr_coca": ("RMSNorm", "GEGLU", "RoPE"),
}
"""Parts of GRR-CoCa in the image encoders of presets that are Baseline CoCa otherwise."""
EFFECTS = {"RMSNorm": 0.002, "GEGLU": -0.006, "RoPE": -0.022}
"""What each part adds to the log of every loss."""
PRIMARY = tuple(
    f"{phase}/{m}" for phase in ("pretraining", "finetuning") for m in ("contrastive_loss", "perplexity", "coca_loss")
)
SECONDARY = tuple(
    f"{phase}/{metric}"
    for phase in ("pretraining", "finetuning")
    for metric in ("contrastive_loss_refitted", "R@1", "CIDEr-D")
)
CAPTIONS = (("snowman", "snowman", "snow"), ("red heart", "heart suit", "red heart"), ("cat", "dog", "cat"))
"""What people say, and what Baseline CoCa and the other arms say."""

PRETRAINING = {"primary": ["pretraining/coca_loss"]}
RATES = {"optimizer.lr": [0.001, 0.01]}


def arm(name: str, **keys: object) -> dict[str, object]:
    """An arm of a plan, such as one with a grid."""
    return {"name": name, **keys}


GRIDS = [arm(name, grid=RATES) for name in ("baseline_coca", "grr_coca")]
TUNED = {
    "arms": [arm(name, grid=RATES, finetune_grid=RATES) for name in ("baseline_coca", "grr_coca")],
    "seeds": [0],
    "finetune": ["health.yaml"],
    "tuning": {"seeds": [9], "steps": 2},
    "endpoints": {"primary": ["pretraining/coca_loss"], "secondary": ["pretraining/CIDEr-D"]},
}
"""Changes of the plan of the fixture `write_study`: without fine-tunings, with a grid, and with tuning."""


def plan(arms: Iterable[str] = tuple(PARTS_OF_PRESET), num_seeds: int = 8, **changes: object) -> dict[str, object]:
    """The content of a plan."""
    return {
        "arms": list(arms),
        "baseline": "baseline_coca",
        "seeds": list(range(num_seeds)),
        "pretrain": "pictograms.yaml",
        "finetune": ["health.yaml", "clipart.yaml", "glyphs.yaml"],
        "endpoints": {"split": "test", "primary": list(PRIMARY), "secondary": list(SECONDARY)},
        "showcase": "test_style",
        **changes,
    }


def write_study(folder: Path, content: dict[str, object], rows: Iterable[LedgerRow]) -> Path:
    """Lay out a study's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.yaml").write_text(yaml.safe_dump(content))
    arms = [each if isinstance(each, str) else each["name"] for each in content["arms"]]
    with_grids = [each["name"] for each in content["arms"] if isinstance(each, dict) and each.get("grid")]
    trial_seeds = (content.get("tuning") or {}).get("seeds", ())
    recipes: dict[str, dict[str, tuple[str, ...]]] = {each: {} for each in arms}
    trials: dict[str, dict[str, tuple[str, ...]]] = {each: {} for each in arms}
    files = RowFolder(folder)
    for row in rows:
        files.publish(row_name(row.arm, "", row.seed, row.stage, (row.recipe_digest, row.kind)), row)
        if row.settings and row.arm in with_grids:
            known = (trials if row.seed in trial_seeds else recipes)[row.arm]
            known[row.stage] = tuple(dict.fromkeys([*known.get(row.stage, ()), row.recipe_digest]))
    files.path.mkdir(exist_ok=True)
    recipes = {each: dict.fromkeys(STAGES, ("0" * 16,)) | found for each, found in recipes.items()}
    write_digests(folder, Digests(recipes, dict.fromkeys(STAGES, "d" * 16), trials))
    return folder


def rows_of(arms: Iterable[str], seeds: Iterable[int], deviation: float = 0.008, **changes: object) -> list[LedgerRow]:
    """Rows of all stages of some arms and seeds; `deviation` of what is an arm's own in a seed."""
    rows = [_row(arm, seed, stage, deviation) for arm in arms for seed in seeds for stage in STAGES]
    return [replace(row, **changes) for row in rows] if changes else rows


@cache
def _row(arm: str, seed: int, stage: str, deviation: float) -> LedgerRow:
    shared = np.random.default_rng([seed, STAGES.index(stage)])
    own = np.random.default_rng([1, seed, STAGES.index(stage), *arm.encode()])
    parts = PARTS_OF_PRESET.get(arm, ())
    shift = sum(EFFECTS[part] for part in parts) * (1 if stage == "pictograms" else 0.4)
    factors = np.exp(shared.normal(0, 0.03, 2) + own.normal(0, deviation, 2) + shift)
    steps = STEPS[STAGES.index(stage)]
    values: dict[str, object] = {
        "arm": arm,
        "seed": seed,
        "stage": stage,
        "recipe_digest": "0" * 16,
        "data_digest": "d" * 16,
        "commit": "1a2b3c4",
        "machine": "synthetic processor, 2 cores, torch 2.13.0",
        "precision": "fp32",
        "settings": {"optimizer.lr": 0.006},
        "steps": steps,
        "seconds": steps * (1.0 + 0.04 * len(parts)) * float(own.uniform(0.98, 1.02)),
        "parameters": 3_000_000 + 1_000 * len(parts),
        "image_encoder_parameters": 800_000 + 1_000 * len(parts),
        "flops_per_pair": 410_000_000,
        "curve": tuple(_point(stage, step, steps, factors, own) for step in range(steps // 6, steps + 1, steps // 6)),
        "metrics": {split: _metrics(stage, factors, own) for split in ("val", "test")},
        "values": {"test": _values(stage, factors, own)},
        "captions": _captions(arm) if stage == "pictograms" else (),
    }
    return LedgerRow(**values)


def _metrics(stage: str, factors: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    contrastive, captioning = (float(x) for x in np.array(LEVELS[stage]) * factors)
    return {
        "contrastive_loss": contrastive,
        "contrastive_loss_refitted": 0.98 * contrastive,
        "captioning_loss": captioning,
        "perplexity": math.exp(captioning),
        "coca_loss": contrastive + 2 * captioning,
        "R@1": float(min(1.0, 0.5 / contrastive * rng.uniform(0.95, 1.05))),
        "CIDEr-D": float(3 / captioning * rng.uniform(0.95, 1.05)),
        "num_pairs": 360,
    }


def _values(stage: str, factors: np.ndarray, rng: np.random.Generator) -> dict[str, list[float]]:
    contrastive, captioning = (float(x) for x in np.array(LEVELS[stage]) * factors)
    images = np.random.default_rng(STAGES.index(stage)).uniform(0.5, 1.5, 90)  # the same for all arms and seeds
    batches = {"contrastive_batches": (contrastive * images[:12]).tolist()}
    nats = (4 * captioning * images * rng.uniform(0.9, 1.1, 90)).tolist()
    ranks = (rng.random(90) > 0.4).astype(int).tolist()
    return {**batches, "nll": nats, "tokens": [4.0] * 90, "rank": ranks, "cider_d": (3 * images).tolist()}


def _point(stage: str, step: int, steps: int, factors: np.ndarray, rng: np.random.Generator) -> CurvePoint:
    far = 1 + 1.8 * math.exp(-4 * step / steps)
    contrastive, captioning = (float(x) * far for x in np.array(LEVELS[stage]) * factors * rng.uniform(0.98, 1.02, 2))
    val = {"contrastive_loss": contrastive, "captioning_loss": captioning, "coca_loss": contrastive + 2 * captioning}
    train = {"contrastive": 1.4 * contrastive, "captioning": 0.8 * captioning}
    return CurvePoint(step, train, {**val, "perplexity": math.exp(captioning)})


def _captions(arm: str) -> tuple[CaptionedExample, ...]:
    said = 1 if arm == "baseline_coca" else 2
    return tuple(CaptionedExample(f"{row[0]}.png", (row[0],), row[said]) for row in CAPTIONS)


def plain_row(**changes: object) -> LedgerRow:
    """A row of which only the changes matter."""
    values: dict[str, object] = {"arm": "grr_coca", "seed": 0, "stage": "emoji", "recipe_digest": "r1"}
    values |= {"data_digest": "d", "commit": "abc", "machine": "none", "precision": "fp32", "steps": 6, "seconds": 1.5}
    values |= {"parameters": 2, "image_encoder_parameters": 1, "flops_per_pair": 3, "metrics": {}}
    return LedgerRow(**values | changes)


def pretended_row(task: Task) -> LedgerRow:
    """The row of a task that was not trained."""
    names = ("arm", "seed", "stage", "recipe_digest", "data_digest", "start_data_digest", "settings")
    metrics = {"val": {"coca_loss": 1.0}, **({"test": {"CIDEr-D": 1.0}} if task.scores_captions else {})}
    asked = {name: getattr(task, name) for name in names}
    return plain_row(**asked, steps=task.recipe.schedule.steps, metrics=metrics)


def diverged(recipe, start, folder, *rest):
    """Stands in for `train`, and gives up as it does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").touch()
    raise DivergedError("step 7: loss or gradient were not finite")
