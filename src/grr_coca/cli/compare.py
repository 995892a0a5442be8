"""`grr-coca compare`: compare two models on the same splits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from grr_coca.cli.evaluate import (
    baseline_recalls,
    baselines_of,
    json_of,
    load_to_measure,
    measure_losses,
    plain_intervals,
    require_splits,
)
from grr_coca.cli.flags import Flag, Lists, join_lists, require_batch_size
from grr_coca.common.errors import require_extra
from grr_coca.infer.load import locate_checkpoint, require_input
from grr_coca.model.checkpoint_files import is_adapted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from grr_coca.evaluate.checkpoint_metrics import SplitMeasures
    from grr_coca.evaluate.intervals import Measure
    from grr_coca.infer.image_text_model import ImageTextModel
    from grr_coca.model.checkpoint import Checkpoint

_DIFFERENCES = {
    "contrastive loss": "contrastive_loss",
    "perplexity": "perplexity",
    "CoCa loss": "coca_loss",
    "R@1": "text_to_image/R@1",
}
_TOKEN_MEANS = ("perplexity", "coca_loss")
"""Metrics that are means over tokens, which cannot be compared if vocabularies or truncation lengths differ."""


def compare_checkpoints(
    checkpoint: Annotated[str, tyro.conf.Positional],
    baseline: Annotated[str, tyro.conf.Positional],
    data: Lists[str] = (),
    batch_size: int = 64,
    baselines: bool = True,
    json: Flag = False,
) -> None:
    """Compare two checkpoints. Changes are relative to the losses of the second checkpoint.

    Adapted models have no losses, so their recalls are compared.

    Args:
        checkpoint: folder, or name of a model (see `grr-coca models`).
        baseline: folder or name of the checkpoint to compare with.
        data: splits: .tar shards, patterns, or folders.
        batch_size: pairs per contrastive batch; the contrastive loss grows with it.
        baselines: also measure baselines from the training pairs of each model; see `evaluate`.
        json: print all metrics of `evaluate` for both, and their differences, as JSON.
    """
    paths = join_lists(data)
    require_splits(paths)
    require_batch_size(batch_size)
    folders = (locate_checkpoint(checkpoint), locate_checkpoint(baseline))

    for folder in folders:
        require_input(folder, paths, as_pairs=True)
    require_extra("torch", "comparing checkpoints")
    models = (load_to_measure(folders[0]), load_to_measure(folders[1]))
    names = (checkpoint, baseline)
    baseline_metrics = {
        name: _measure_baselines(folder, paths) if baselines else {}
        for name, folder in zip(names, folders, strict=True)
    }
    if any(map(is_adapted, folders)):
        first, second = (_measure_recalls(model, paths, batch_size) for model in models)
        print(_as_json(first, second, names, baseline_metrics) if json else _recall_table(first, second))
    else:
        measured = tuple(measure_losses(model, paths, batch_size) for model in models)
        measures = [{path: each.measures for path, each in own.items()} for own in measured]
        table = "" if json else _loss_table(models, measured, names, batch_size)
        tokens = [(measured[0][path].num_tokens, measured[1][path].num_tokens) for path in paths]
        reason = _incomparable_reason(models, tokens)
        print(_as_json(measures[0], measures[1], names, baseline_metrics, reason) if json else table)
    if not json:
        for line in _format_baselines(baseline_metrics):
            print(line)


_BaselineMetrics = dict[str, dict[str, dict[str, "Mapping[str, Measure]"]]]
"""Metrics by model, split, baseline and name."""


def _measure_baselines(folder: Path, paths: tuple[str, ...]) -> "dict[str, dict[str, Mapping[str, Measure]]]":
    from grr_coca.data.sources.open import open_source

    fitted = baselines_of(folder)
    if fitted is None:
        return {}
    return {path: dict(baseline_recalls(fitted, open_source(path), "equal")) for path in paths}


def _format_baselines(baseline_metrics: _BaselineMetrics) -> "Iterator[str]":
    for model, by_path in baseline_metrics.items():
        for path, found in by_path.items():
            for name, measures in found.items():
                recall = "  ".join(f"R@{k} {measures[f'text_to_image/R@{k}'].value():.1%}" for k in (1, 5, 10))
                yield f"{name} by the training pairs of {model}, {path}: text to image {recall}"


def _measure_recalls(
    model: "Checkpoint | ImageTextModel", paths: tuple[str, ...], batch_size: int
) -> "dict[str, dict[str, Measure]]":
    from grr_coca.data.sources.open import open_source  # lazy imports, here and below: PyTorch
    from grr_coca.evaluate.checkpoint_metrics import retrieval_measures
    from grr_coca.evaluate.split import retrieve
    from grr_coca.evaluate.tasks import split_gallery

    return {
        path: retrieval_measures(retrieve(split_gallery(model, open_source(path), batch_size), "equal"))
        for path in paths
    }


def _recall_table(first: "Mapping[str, Mapping[str, Measure]]", second: "Mapping[str, Mapping[str, Measure]]") -> str:
    lines = []
    for path, measures in first.items():
        lines.append(f"{path}: recall of both, and the difference with its interval of level 0.95 over images")
        for name, measure in measures.items():
            other = second[path][name]
            change = measure.difference(other)
            lines.append(
                f"  {name.replace('_', ' '):<18} {measure.value():6.1%} {other.value():7.1%}   "
                f"{change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"
            )
    return "\n".join([*lines, "equal captions are correct answers; an adapted model has no losses"])


def _as_json(
    first: "Mapping[str, Mapping[str, Measure]]",
    second: "Mapping[str, Mapping[str, Measure]]",
    names: tuple[str, str],
    baseline_metrics: _BaselineMetrics,
    incomparable_reason: str | None = None,
) -> str:
    """Return all metrics of two models, and their differences, as JSON by split.

    Args:
        first: Metrics of the first model.
        second: Metrics of the second model.
        names: Names of the models.
        baseline_metrics: Metrics of the baselines.
        incomparable_reason: Reason why means over tokens cannot be compared, in which case their differences are
            omitted. None if they can be compared.
    """
    incomparable = () if incomparable_reason is None else _TOKEN_MEANS
    return json_of(
        {
            path: {
                "models": list(names),
                "metrics": [_intervals(own[path]) for own in (first, second)],
                "baselines": [
                    {name: _intervals(measures) for name, measures in baseline_metrics[model].get(path, {}).items()}
                    for model in names
                ],
                "differences": plain_intervals(
                    {
                        name: measure.difference(second[path][name])
                        for name, measure in measures.items()
                        if name not in incomparable
                    }
                ),
                "incomparable": dict.fromkeys(incomparable, incomparable_reason),
            }
            for path, measures in first.items()
        }
    )


def _intervals(measures: "Mapping[str, Measure]") -> dict[str, dict[str, float]]:
    return plain_intervals({name: measure.interval() for name, measure in measures.items()})


def _loss_table(
    models: "tuple[Checkpoint | ImageTextModel, ...]",
    measured: "tuple[dict[str, SplitMeasures], ...]",
    given: tuple[str, str],
    batch_size: int,
) -> str:
    from grr_coca.evaluate.table import average_row, format_table, row, row_metrics  # lazy import: PyTorch

    first, second = measured
    rows = [row(path, row_metrics(first[path].evaluation), row_metrics(second[path].evaluation)) for path in first]
    if len(rows) > 1:
        rows.append(average_row("average", rows))
    presets = (models[0].preset, models[1].preset)
    names = presets if presets[0] != presets[1] else given
    reason = _incomparable_reason(models, [(first[path].num_tokens, second[path].num_tokens) for path in first])
    incomparable = () if reason is None else _TOKEN_MEANS
    lines = [
        format_table(rows, names, incomparable),
        f"contrastive loss of batches of {batch_size} pairs; R@1 text to image; changes over {names[1]}",
    ]
    if reason is not None:
        lines.append(f"perplexity and CoCa loss {reason}, and cannot be compared")
    lines.append("differences, with intervals of level 0.95 over images of the split (not over seeds of training):")
    lines += [f"{path}: {_format_differences(first[path], second[path], incomparable)}" for path in first]
    return "\n".join(lines)


def _incomparable_reason(
    models: "tuple[Checkpoint | ImageTextModel, ...]", num_tokens: list[tuple[int, int]]
) -> str | None:
    """Return the reason why means over tokens of two models cannot be compared, or None if they can."""
    if not models[0].tokenizer.has_vocabulary_of(models[1].tokenizer):
        return "are means over tokens of different vocabularies"
    if any(one != other for one, other in num_tokens):
        lengths = " and ".join(str(model.config.text_decoder.context_length) for model in models)
        return f"are of captions truncated to different lengths (contexts of {lengths} tokens)"
    return None


def _format_differences(first: "SplitMeasures", second: "SplitMeasures", incomparable: tuple[str, ...]) -> str:
    keys = {title: key for title, key in _DIFFERENCES.items() if key not in incomparable}
    found = {title: first.measures[key].difference(second.measures[key]) for title, key in keys.items()}
    return "; ".join(f"{title} {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for title, d in found.items())
