"""`grr-coca evaluate`."""

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro

from grr_coca.checkpoint import Checkpoint
from grr_coca.cli.measuring.splits import load, measure_paths, require_paths
from grr_coca.data.sources.open import open_source
from grr_coca.errors import UserError
from grr_coca.evaluate.attention_probe import AttentionProbeOptions
from grr_coca.evaluate.bootstrap import Interval
from grr_coca.evaluate.captions import caption_split, write_captions
from grr_coca.evaluate.checkpoint import Measured
from grr_coca.evaluate.labelled import open_labelled
from grr_coca.evaluate.labels import TEMPLATES, read_labels, read_templates
from grr_coca.evaluate.tasks import (
    Report,
    intervals,
    measure_captions,
    measure_probe,
    measure_retrieval,
    measure_zeroshot,
)

Task = Literal["loss", "retrieval", "captioning", "zeroshot", "probe"]
TASK_OF = {"folds": "retrieval", "out": "captioning", "labels": "zeroshot", "templates": "zeroshot", "train": "probe"}
"""Options that belong to one task."""


def run(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    data: tuple[str, ...] = (),
    task: Task = "loss",
    batch_size: int = 64,
    folds: int | None = None,
    out: Path | None = None,
    labels: Path | None = None,
    templates: Path | None = None,
    train: str | None = None,
    json: bool = False,
) -> None:
    """Measure a checkpoint on splits, with 95 % intervals over images.

    Args:
        checkpoint: checkpoint or run folder.
        data: splits to evaluate on: .tar shards, patterns, or folders; for zeroshot and probe also a folder per class.
        task: loss (with retrieval as in training), retrieval as the literature counts it, captioning, zeroshot, probe.
        batch_size: pairs per contrastive batch; the contrastive loss grows with it.
        folds: retrieval in as many parts of the split; COCO's 1k protocol is 5,000 images in 5.
        out: captioning writes its captions here; JSON lines.
        labels: zeroshot classes, one a line; those that occur if not given.
        templates: zeroshot sentences with {} for the class, one a line.
        train: probe's training images with their classes.
        json: print JSON.
    """
    given = {"folds": folds, "out": out, "labels": labels, "templates": templates, "train": train}
    _check(task, data, batch_size, {name for name, value in given.items() if value is not None})
    model = load(checkpoint)
    if task == "loss":
        _say_losses(measure_paths(model, data, batch_size), json)
        return
    reports = {}
    for path in data:
        if task == "retrieval":
            reports[path] = measure_retrieval(model, open_source(path), batch_size, folds or 1, "own")
        elif task == "captioning":
            reports[path] = _captioning(model, path, batch_size, out)
        elif task == "zeroshot":
            images = open_labelled(path, None if labels is None else read_labels(labels))
            sentences = TEMPLATES if templates is None else read_templates(templates)
            reports[path] = measure_zeroshot(model, images, sentences, batch_size)
        else:
            assert train is not None
            images = open_labelled(train)
            tested = open_labelled(path, images.classes)
            reports[path] = measure_probe(model, images, tested, batch_size, AttentionProbeOptions())
    _say_reports(reports, json)


def _check(task: Task, data: tuple[str, ...], batch_size: int, given: set[str]) -> None:
    require_paths(data)
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: a batch has 1 or more")
    wrong = [name for name in TASK_OF if name in given and TASK_OF[name] != task]
    if wrong:
        raise UserError(f"--{wrong[0]} belongs to --task {TASK_OF[wrong[0]]}, not to --task {task}")
    if task == "probe" and "train" not in given:
        raise UserError("a probe is trained: give --train PATH, images with their classes")
    if "out" in given and len(data) > 1:
        raise UserError(f"--out takes the captions of one split, here are {len(data)}; evaluate one at a time")


def _captioning(model: Checkpoint, path: str, batch_size: int, out: Path | None) -> Report:
    captioned = caption_split(model, open_source(path), batch_size=batch_size)
    if out is not None:
        write_captions(captioned, out)
    return measure_captions(captioned)


def _say_losses(measured: dict[str, Measured], json: bool) -> None:
    found = {path: (each.evaluation, intervals(each.measures)) for path, each in measured.items()}
    if json:
        content = {
            path: {**asdict(evaluation), "intervals": _plain(spread)} for path, (evaluation, spread) in found.items()
        }
        print(json_module.dumps(content, indent=2))
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


def _say_reports(reports: dict[str, Report], json: bool) -> None:
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
        print(json_module.dumps(content, indent=2, ensure_ascii=False))
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


def _plain(spread: dict[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: interval._asdict() for name, interval in spread.items()}


def _share(interval: Interval) -> str:
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
