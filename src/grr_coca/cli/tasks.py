"""Runs the tasks of `grr-coca evaluate`, and prints their results.

Losses and retrieval of a checkpoint on several splits, for `evaluate` and `compare`.
"""

import json as json_module
import math
from dataclasses import asdict
from pathlib import Path

import torch

from grr_coca.checkpoint import Checkpoint, from_pretrained
from grr_coca.cli.splits import Task, TaskOptions
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.caption_split import caption_split, write_captions
from grr_coca.evaluate.checkpoint import Measured, measure_checkpoint
from grr_coca.evaluate.intervals import Interval
from grr_coca.evaluate.labelled import open_labelled
from grr_coca.evaluate.probes import AttentionProbeOptions
from grr_coca.evaluate.tasks import (
    Report,
    intervals,
    measure_captions,
    measure_probe,
    measure_retrieval,
    measure_zeroshot,
)
from grr_coca.losses import LossWeights


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load a checkpoint on the GPU if there is one, else on the CPU."""
    return from_pretrained(folder, "cuda" if torch.cuda.is_available() else "cpu")


def measure_paths(checkpoint: Checkpoint, paths: tuple[str, ...], batch_size: int) -> dict[str, Measured]:
    """Losses and retrieval on each path, by path, with the paper's loss weights."""
    return {path: measure_checkpoint(checkpoint, open_source(path), batch_size, LossWeights()) for path in paths}


def measure(task: Task, checkpoint: Checkpoint, path: str, options: TaskOptions) -> Report:
    """Measure a checkpoint in one task on one split.

    Raises:
        UserError: the split cannot be read, or does not fit the task.
    """
    if task == "retrieval":
        return measure_retrieval(checkpoint, open_source(path), options.batch_size, options.folds, "own")
    if task == "captioning":
        captioned = caption_split(checkpoint, open_source(path), batch_size=options.batch_size)
        if options.out is not None:
            write_captions(captioned, options.out)
        return measure_captions(captioned)
    if task == "zeroshot":
        images = open_labelled(path, options.class_names)
        return measure_zeroshot(checkpoint, images, options.templates, options.batch_size)
    assert options.train is not None
    images = open_labelled(options.train)
    tested = open_labelled(path, images.class_names)
    return measure_probe(checkpoint, images, tested, options.batch_size, AttentionProbeOptions())


def say_losses(measured: dict[str, Measured], json: bool) -> None:
    """Print losses and retrieval of each split."""
    found = {path: (each.evaluation, intervals(each.measures)) for path, each in measured.items()}
    if json:
        content = {
            path: {**asdict(evaluation), "intervals": _plain(spread)} for path, (evaluation, spread) in found.items()
        }
        print(_as_json(content))
        return
    for path, (evaluation, spread) in found.items():
        e = evaluation
        print(path)
        print(f"  pairs            {e.num_pairs:,}")
        print(f"  contrastive loss {spread['contrastive_loss']}   (batches of {e.contrastive_batch_size} pairs)")
        print(f"  perplexity       {spread['perplexity']}   (per token)")
        print(f"  CoCa loss        {spread['coca_loss']}")
        for direction in ("text_to_image", "image_to_text"):
            shares = "  ".join(
                f"{name.rpartition('/')[2]} {_share(interval)}"
                for name, interval in spread.items()
                if name.startswith(direction)
            )
            print(f"  {direction.replace('_', ' '):<17}{shares}  median rank {e.median_rank[direction]:g}")
        print(f"  {'chance':<17}" + "  ".join(f"{k} {share:.1%}" for k, share in e.chance.items()))
        print("  equal captions are right answers; in brackets: 95 % intervals over images\n")


def say_reports(reports: dict[str, Report], json: bool) -> None:
    """Print the report of each split."""
    if json:
        content = {
            path: {
                "task": report.task,
                "depends_on": dict(report.depends_on),
                "metrics": _plain(dict(report.metrics)),
                "plain": dict(report.plain),
            }
            for path, report in reports.items()
        }
        print(_as_json(content))
        return
    for path, report in reports.items():
        print(path)
        width = max(map(len, [*report.metrics, *report.plain]))
        for name, interval in report.metrics.items():
            print(f"  {name:<{width}}  {interval}")
        for name, value in report.plain.items():
            print(f"  {name:<{width}}  {value:.4f}")
        for name, on in report.depends_on.items():
            print(f"  ({name}: {on})")
        print("  in brackets: 95 % intervals over images\n")


def _as_json(content: object) -> str:
    return json_module.dumps(_finite(content), indent=2, allow_nan=False)


def _finite(content: object) -> object:
    """The same with null in place of numbers that are none, which JSON does not have."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _plain(spread: dict[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: interval._asdict() for name, interval in spread.items()}


def _share(interval: Interval) -> str:
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
