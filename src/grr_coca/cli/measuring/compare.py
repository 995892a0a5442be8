"""`grr-coca compare`."""

from typing import TYPE_CHECKING, Annotated

import tyro

from grr_coca.cli.measuring.splits import require_paths
from grr_coca.inference.locate import locate_checkpoint

if TYPE_CHECKING:
    from grr_coca.evaluate.checkpoint import Measured

DIFFERENCES = {
    "contrastive loss": "contrastive_loss",
    "perplexity": "perplexity",
    "CoCa loss": "coca_loss",
    "R@1": "text_to_image/R@1",
}
OF_TOKENS = ("perplexity", "coca_loss")
"""Means over tokens, which are other ones with another vocabulary."""


def run(
    checkpoint: Annotated[str, tyro.conf.Positional],
    baseline: Annotated[str, tyro.conf.Positional],
    data: tuple[str, ...] = (),
    batch_size: int = 64,
) -> None:
    """Compare one checkpoint with another. Changes are relative to the second one's losses.

    Args:
        checkpoint: folder, or name of a model (see `grr-coca models`).
        baseline: folder or name of the checkpoint to compare with.
        data: splits to evaluate on: .tar shards, patterns, or folders.
        batch_size: pairs per contrastive batch; the contrastive loss grows with it.
    """
    require_paths(data)
    folders = (locate_checkpoint(checkpoint), locate_checkpoint(baseline))

    from grr_coca.cli.measuring.losses import load_checkpoint, measure_paths  # late: torch comes with it
    from grr_coca.study.demo.table import average_row, format_table, row
    from grr_coca.study.running.measured import row_metrics

    models = (load_checkpoint(folders[0]), load_checkpoint(folders[1]))
    first, second = (measure_paths(model, data, batch_size) for model in models)
    rows = [row(path, row_metrics(first[path].evaluation), row_metrics(second[path].evaluation)) for path in first]
    if len(rows) > 1:
        rows.append(average_row("average", rows))
    presets = (models[0].preset, models[1].preset)
    names = presets if presets[0] != presets[1] else (checkpoint, baseline)
    unlike = () if models[0].tokenizer.has_vocabulary_of(models[1].tokenizer) else OF_TOKENS
    print(format_table(rows, names, unlike))
    print(f"contrastive loss of batches of {batch_size} pairs; R@1 text to image; changes over {names[1]}")
    if unlike:
        print("perplexity and CoCa loss are means over tokens of different vocabularies, and cannot be compared")
    print("differences, with intervals of level 0.95 over images of the split (not over seeds of training):")
    for path in first:
        print(f"{path}: {_differences(first[path], second[path], unlike)}")


def _differences(first: "Measured", second: "Measured", unlike: tuple[str, ...]) -> str:
    keys = {title: key for title, key in DIFFERENCES.items() if key not in unlike}
    found = {title: first.measures[key].difference(second.measures[key]) for title, key in keys.items()}
    return "; ".join(f"{title} {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for title, d in found.items())
