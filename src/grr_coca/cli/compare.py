"""`grr-coca compare`."""

from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.splits import evaluate_paths, load
from grr_coca.study.table import average_row, format_table, row


def run(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    baseline: Annotated[Path, tyro.conf.Positional],
    data: tuple[str, ...] = (),
    batch_size: int = 64,
) -> None:
    """Hold one checkpoint against another; changes are shares of the second's losses.

    Args:
        checkpoint: checkpoint or run folder.
        baseline: checkpoint or run folder to compare with.
        data: splits to evaluate on: .tar shards, patterns, or folders.
        batch_size: pairs per contrastive batch; the contrastive loss grows with it.
    """
    models = (load(checkpoint), load(baseline))
    first, second = (evaluate_paths(model, data, batch_size) for model in models)
    rows = [row(name, first[name], second[name]) for name in first]
    if len(rows) > 1:
        rows.append(average_row("average", rows))
    print(format_table(rows, (models[0].preset, models[1].preset)))
    print(f"contrastive loss of batches of {batch_size} pairs; R@1 text to image; changes over {models[1].preset}")
