"""`grr-coca evaluate`: measure a model on splits, and print the results.

No module that imports torch is imported before the arguments have been checked, so errors are reported immediately.
"""

import json as json_format
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from grr_coca.cli.flags import Lists, join_lists, require_batch_size
from grr_coca.common.errors import UserError, require_extra
from grr_coca.common.outputs import require_not_an_input, require_writable
from grr_coca.infer.class_names import TEMPLATES, read_class_names, read_templates
from grr_coca.infer.load import load, locate_checkpoint, require_input
from grr_coca.model.checkpoint_files import DEFAULT, is_adapted, start_of_run

if TYPE_CHECKING:
    from grr_coca.adapt.baselines import Baselines
    from grr_coca.data.sources.base import PairSource
    from grr_coca.evaluate.checkpoint_metrics import SplitMeasures
    from grr_coca.evaluate.intervals import Interval, Measure
    from grr_coca.evaluate.tasks import Report
    from grr_coca.infer.image_text_model import ImageTextModel
    from grr_coca.model.checkpoint import Checkpoint

Task = Literal["loss", "retrieval", "captioning", "zeroshot", "probe"]
_TASK_OF_OPTION = {"out": "captioning", "labels": "zeroshot", "templates": "zeroshot", "train": "probe"}
"""The task of each option that applies to only one task."""


def evaluate_splits(
    checkpoint: Annotated[str, tyro.conf.Positional],
    data: Lists[str] = (),
    task: Task | None = None,
    batch_size: int = 64,
    out: Path | None = None,
    labels: Path | None = None,
    templates: Path | None = None,
    train: str | None = None,
    baselines: bool = True,
    json: bool = False,
) -> None:
    """Measure a checkpoint on splits, with 95 % intervals over images.

    Args:
        checkpoint: folder, or name of a model (see `grr-coca models`).
        data: splits: .tar shards, patterns, or folders; for zeroshot and probe also a folder per class.
        task: loss (with retrieval as in training), retrieval (as in the literature), captioning, zeroshot, or probe. If
            not given, loss; or retrieval for an adapted model, which has no losses.
        batch_size: pairs per contrastive batch; the contrastive loss grows with it.
        out: for captioning, write the captions to this file of JSON lines.
        labels: for zeroshot, a file of classes, one per line; if not given, the classes that occur in the split.
        templates: for zeroshot, a file of sentences with {} for the class, one per line.
        train: for probe, the training images with their classes.
        baselines: for loss, retrieval and captioning, also measure baselines from the training pairs: the
            closed form of `adapt`, and the nearest image. Only for a model in its run folder, whose pairs are known.
        json: print JSON.
    """
    given = {"out": out, "labels": labels, "templates": templates, "train": train}
    paths = join_lists(data)
    named = {name for name, value in given.items() if value is not None}
    _check_options(task or "loss", paths, batch_size, named)
    if train is not None:
        from grr_coca.data.sources.open import require_exists  # lazy import: NumPy and Pillow

        require_exists(train)

    folder = locate_checkpoint(checkpoint)
    task = task or ("retrieval" if is_adapted(folder) else "loss")
    if is_adapted(folder) and task in ("loss", "probe"):
        raise UserError(f"{folder}: an adapted model has no {task}; use --task retrieval, captioning or zeroshot")
    class_names = None if labels is None else read_class_names(labels)
    sentences = TEMPLATES if templates is None else read_templates(templates)
    if out is not None:  # checked before captioning begins
        from grr_coca.data.sources.open import find_files

        require_not_an_input(out, [file for path in paths for file in find_files(path)[0]])
        require_writable(out)
    require_input(folder, paths, as_pairs=True)
    require_extra("torch", "evaluating")
    model = load_to_measure(folder)
    has_baselines = baselines and task in ("loss", "retrieval", "captioning")
    fitted = baselines_of(folder) if has_baselines else None
    baseline_metrics = {path: {} if fitted is None else _baseline_intervals(fitted, task, path) for path in paths}
    if task == "loss":
        _print_losses(measure_losses(model, paths, batch_size), baseline_metrics, json)
        return
    options = _TaskOptions(batch_size=batch_size, out=out, class_names=class_names, templates=sentences, train=train)
    _print_reports({path: _measure(task, model, path, options) for path in paths}, baseline_metrics, json)


def _check_options(task: Task, data: tuple[str, ...], batch_size: int, given: set[str]) -> None:
    require_splits(data)
    require_batch_size(batch_size)
    wrong = [name for name in _TASK_OF_OPTION if name in given and _TASK_OF_OPTION[name] != task]
    if wrong:
        raise UserError(f"--{wrong[0]} belongs to --task {_TASK_OF_OPTION[wrong[0]]}, not to --task {task}")
    if task == "probe":
        require_extra("probe", "--task probe")
        if "train" not in given:
            raise UserError("a probe needs training images with their classes; pass --train PATH")
    if "out" in given and len(data) > 1:
        raise UserError(f"--out takes the captions of one split, got {len(data)} splits; evaluate one at a time")


def require_splits(paths: tuple[str, ...]) -> None:
    """Check that the splits exist before loading anything.

    Raises:
        UserError: If no path is given, or a path does not exist.
    """
    if not paths:
        raise UserError("no split given; pass --data PATH [PATH …]: shards, a folder or another file of pairs")
    from grr_coca.data.sources.open import require_exists  # lazy import: NumPy and Pillow

    for path in paths:
        require_exists(path)


@dataclass(frozen=True, kw_only=True)
class _TaskOptions:
    """Options of all tasks except `loss`.

    Attributes:
        out: For captioning, the file to write captions to.
        class_names: For zeroshot, the classes. If None, the classes that occur in the split.
        templates: For zeroshot, the sentences for a class.
        train: For probe, the images to train on.
    """

    batch_size: int
    out: Path | None
    class_names: tuple[str, ...] | None
    templates: tuple[str, ...]
    train: str | None


def load_to_measure(folder: Path) -> "Checkpoint | ImageTextModel":
    """Load a checkpoint on the CUDA GPU if one exists, else on the CPU. An adapted model is loaded with its adaptation.

    Raises:
        UserError: If a file is missing or corrupt.
    """
    if is_adapted(folder):
        return load(folder)
    import torch  # lazy imports, as for all modules below, because they take seconds

    from grr_coca.model.checkpoint import from_pretrained

    return from_pretrained(folder, "cuda" if torch.cuda.is_available() else "cpu")


def measure_losses(
    checkpoint: "Checkpoint | ImageTextModel", paths: tuple[str, ...], batch_size: int
) -> "dict[str, SplitMeasures]":
    """Return the losses and retrieval metrics of each split, by its path, with the loss weights of the paper."""
    from grr_coca.data.sources.open import open_source
    from grr_coca.evaluate.checkpoint_metrics import measure_checkpoint
    from grr_coca.model.checkpoint import Checkpoint
    from grr_coca.model.losses import LossWeights

    assert isinstance(checkpoint, Checkpoint), "an adapted model has no losses"
    return {path: measure_checkpoint(checkpoint, open_source(path), batch_size, LossWeights()) for path in paths}


def _measure(task: Task, checkpoint: "Checkpoint | ImageTextModel", path: str, options: _TaskOptions) -> "Report":
    """Measure a checkpoint on one split in one task.

    Raises:
        UserError: If the split cannot be read, or is unsuitable for the task.
    """
    from grr_coca.data.sources.open import open_source
    from grr_coca.evaluate.caption_split import caption_split, write_captions
    from grr_coca.evaluate.labelled import open_labelled
    from grr_coca.evaluate.tasks import measure_captions, measure_probe, measure_retrieval, measure_zeroshot
    from grr_coca.model.checkpoint import Checkpoint

    if task == "retrieval":
        return measure_retrieval(checkpoint, open_source(path), options.batch_size, "own")
    if task == "captioning":
        captioned = caption_split(checkpoint, open_source(path), batch_size=options.batch_size)
        if options.out is not None:
            write_captions(captioned, options.out)
        return measure_captions(captioned)
    if task == "zeroshot":
        images = open_labelled(path, options.class_names)
        return measure_zeroshot(checkpoint, images, options.templates, options.batch_size)
    assert options.train is not None
    assert isinstance(checkpoint, Checkpoint), "an adapted model has no probe"
    images = open_labelled(options.train)
    tested = open_labelled(path, images.class_names)
    return measure_probe(checkpoint, images, tested, options.batch_size)


# --- Baselines from the training pairs of a run


def baselines_of(folder: Path) -> "Baselines | None":
    """Fit the baselines of a model to its run's training pairs. Return None if the pairs are unknown or unsuitable.

    The baselines use the start model of the run or, if it is unknown, the default model. If the pairs are unsuitable,
    the reason is printed on standard error.

    Args:
        folder: Checkpoint of the model.
    """
    run = folder.parent.parent
    if is_adapted(folder) or folder.parent.name != "checkpoints":
        return None
    from grr_coca.adapt.baselines import Baselines  # lazy imports, here and below: PyTorch
    from grr_coca.train.recipe import load_recipe
    from grr_coca.train.setup import training_sources

    try:
        recipe = load_recipe(run / "recipe.yaml")
        pairs, _ = training_sources(recipe)
        # A run that started with new weights is compared with the default model.
        return Baselines(pairs, recipe.data.train, load(start_of_run(run) or locate_checkpoint(DEFAULT)))
    except UserError as error:
        print(f"no baselines: {error}", file=sys.stderr)
        return None


def baseline_recalls(baselines: "Baselines", split: "PairSource", right: str) -> "dict[str, dict[str, Measure]]":
    """Return the recalls of each baseline on a split, by baseline and metric.

    Args:
        baselines: Fitted baselines.
        split: Pairs.
        right: Correct answers, `own` or `equal`; see `grr_coca.evaluate.split.retrieve`.
    """
    from grr_coca.evaluate.checkpoint_metrics import retrieval_measures
    from grr_coca.evaluate.split import retrieve

    return {
        name: retrieval_measures(retrieve(gallery, "own" if right == "own" else "equal"))
        for name, gallery in baselines.galleries(split).items()
    }


def _baseline_intervals(fitted: "Baselines", task: Task, path: str) -> "dict[str, dict[str, Interval]]":
    """Return the metrics of each baseline on a split in a task, with their intervals, by baseline and metric."""
    from grr_coca.data.sources.open import open_source
    from grr_coca.evaluate.tasks import intervals

    split = open_source(path)
    if task == "captioning":
        found = {name: captioned.scores().measures() for name, captioned in fitted.captions(split).items()}
    else:
        found = baseline_recalls(fitted, split, "own" if task == "retrieval" else "equal")
    return {name: intervals(measures) for name, measures in found.items()}


# --- Output


def _print_losses(
    measured: "dict[str, SplitMeasures]", baseline_metrics: "dict[str, dict[str, dict[str, Interval]]]", json: bool
) -> None:
    """Print the losses and the retrieval metrics of each split, and those of the baselines."""
    from grr_coca.evaluate.tasks import intervals

    found = {path: (each.evaluation, intervals(each.measures)) for path, each in measured.items()}
    if json:
        content = {
            path: {
                **asdict(evaluation),
                "intervals": plain_intervals(spread),
                "baselines": {name: plain_intervals(metrics) for name, metrics in baseline_metrics[path].items()},
            }
            for path, (evaluation, spread) in found.items()
        }
        print(json_of(content))
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
                f"{name.rpartition('/')[2]} {_percent(interval)}"
                for name, interval in spread.items()
                if name.startswith(direction)
            )
            print(f"  {direction.replace('_', ' '):<17}{shares}  median rank {e.median_rank[direction]:g}")
        for name, metrics in baseline_metrics[path].items():
            shown = "  ".join(f"{_metric_title(metric)} {_percent(interval)}" for metric, interval in metrics.items())
            print(f"  {name:<17}{shown}")
        print(f"  {'chance':<17}" + "  ".join(f"{k} {share:.1%}" for k, share in e.chance.items()))
        print("  equal captions are correct answers; in brackets: 95 % intervals over images\n")


def _metric_title(metric: str) -> str:
    """Return the title of a metric, such as `text→image R@1` for `text_to_image/R@1`."""
    return metric.replace("_to_", "→").replace("/", " ")


def _print_reports(
    reports: "dict[str, Report]", baseline_metrics: "dict[str, dict[str, dict[str, Interval]]]", json: bool
) -> None:
    """Print the report of each split, and the metrics of the baselines."""
    if json:
        content = {
            path: {
                "task": report.task,
                "depends_on": dict(report.depends_on),
                "metrics": plain_intervals(dict(report.metrics)),
                "plain": dict(report.plain),
                "baselines": {name: plain_intervals(metrics) for name, metrics in baseline_metrics[path].items()},
            }
            for path, report in reports.items()
        }
        print(json_of(content))
        return
    for path, report in reports.items():
        print(path)
        width = max(map(len, [*report.metrics, *report.plain]))
        for name, interval in report.metrics.items():
            print(f"  {name:<{width}}  {interval}")
        for name, value in report.plain.items():
            print(f"  {name:<{width}}  {value:.4f}")
        for baseline, metrics in baseline_metrics[path].items():
            for name, interval in metrics.items():
                print(f"  {name:<{width}}  {interval}  {baseline}")
        for name, on in report.depends_on.items():
            print(f"  ({name}: {on})")
        print("  in brackets: 95 % intervals over images\n")


def json_of(content: object) -> str:
    """Return a report as JSON, with null in place of NaN and infinity."""
    return json_format.dumps(_with_finite_numbers(content), indent=2, allow_nan=False)


def _with_finite_numbers(content: object) -> object:
    """Return a copy of a report with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {key: _with_finite_numbers(value) for key, value in content.items()}
    return None if isinstance(content, float) and not math.isfinite(content) else content


def plain_intervals(spread: "dict[str, Interval]") -> dict[str, dict[str, float]]:
    """Return the intervals as plain objects for JSON."""
    return {name: interval._asdict() for name, interval in spread.items()}


def _percent(interval: "Interval") -> str:
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
