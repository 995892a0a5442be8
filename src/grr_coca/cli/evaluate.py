"""`grr-coca evaluate`."""

from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.output import Lists, joined, require_other, require_writable
from grr_coca.cli.splits import Task, TaskOptions, require_paths
from grr_coca.data.sources.open import require_there
from grr_coca.errors import UserError
from grr_coca.evaluate.class_names import TEMPLATES, read_class_names, read_templates
from grr_coca.extras import require_extra
from grr_coca.inference.locate import locate_checkpoint

TASK_OF = {"folds": "retrieval", "out": "captioning", "labels": "zeroshot", "templates": "zeroshot", "train": "probe"}
"""Options that belong to a single task."""


def run(
    checkpoint: Annotated[str, tyro.conf.Positional],
    data: Lists[str] = (),
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
        checkpoint: folder, or name of a model (see `grr-coca models`).
        data: splits to evaluate on: .tar shards, patterns, or folders; for zeroshot and probe also a folder per class.
        task: loss (with retrieval as in training), retrieval (as in the literature), captioning, zeroshot, or probe.
        batch_size: pairs per contrastive batch; the contrastive loss grows with it.
        folds: for retrieval, cut the split into this number of parts; COCO's 1k protocol cuts 5,000 images into 5.
        out: for captioning, write the captions to this file of JSON lines.
        labels: for zeroshot, a file of classes, one per line; if not given, the classes that occur.
        templates: for zeroshot, a file of sentences with {} for the class, one per line.
        train: for probe, the training images with their classes.
        json: print JSON.
    """
    given = {"folds": folds, "out": out, "labels": labels, "templates": templates, "train": train}
    paths = joined(data)
    _check(task, paths, batch_size, {name for name, value in given.items() if value is not None})
    if folds is not None and folds < 1:
        raise UserError(f"--folds {folds}: a split is cut into 1 part or more")
    if train is not None:
        require_there(train)
    folder = locate_checkpoint(checkpoint)
    class_names = None if labels is None else read_class_names(labels)
    sentences = TEMPLATES if templates is None else read_templates(templates)
    if out is not None:  # what would fail after all images were captioned is known before
        require_other(out, paths)
        require_writable(out)

    from grr_coca.cli.tasks import (  # late: torch comes with it
        load_checkpoint,
        measure,
        measure_paths,
        say_losses,
        say_reports,
    )

    model = load_checkpoint(folder)
    if task == "loss":
        say_losses(measure_paths(model, paths, batch_size), json)
        return
    options = TaskOptions(
        batch_size=batch_size, folds=folds or 1, out=out, class_names=class_names, templates=sentences, train=train
    )
    say_reports({path: measure(task, model, path, options) for path in paths}, json)


def _check(task: Task, data: tuple[str, ...], batch_size: int, given: set[str]) -> None:
    require_paths(data)
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: a batch has 1 or more")
    wrong = [name for name in TASK_OF if name in given and TASK_OF[name] != task]
    if wrong:
        raise UserError(f"--{wrong[0]} belongs to --task {TASK_OF[wrong[0]]}, not to --task {task}")
    if task == "probe":
        require_extra("probe", "--task probe")
        if "train" not in given:
            raise UserError("a probe is trained: give --train PATH, images with their classes")
    if "out" in given and len(data) > 1:
        raise UserError(f"--out takes the captions of one split, here are {len(data)}; evaluate one at a time")
