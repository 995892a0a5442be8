"""`grr-coca compare`."""

from typing import TYPE_CHECKING, Annotated

import tyro

from grr_coca.cli.output import Lists, joined
from grr_coca.cli.splits import require_paths
from grr_coca.inference.locate import locate_checkpoint

if TYPE_CHECKING:
    from grr_coca.checkpoint import Checkpoint
    from grr_coca.evaluate.checkpoint import Measured

DIFFERENCES = {
    "contrastive loss": "contrastive_loss",
    "perplexity": "perplexity",
    "CoCa loss": "coca_loss",
    "R@1": "text_to_image/R@1",
}
OF_TOKENS = ("perplexity", "coca_loss")
"""Means over tokens, which are other ones with another vocabulary, or if captions are cut elsewhere."""


def run(
    checkpoint: Annotated[str, tyro.conf.Positional],
    baseline: Annotated[str, tyro.conf.Positional],
    data: Lists[str] = (),
    batch_size: int = 64,
) -> None:
    """Compare one checkpoint with another. Changes are relative to the second one's losses.

    Args:
        checkpoint: folder, or name of a model (see `grr-coca models`).
        baseline: folder or name of the checkpoint to compare with.
        data: splits to evaluate on: .tar shards, patterns, or folders.
        batch_size: pairs per contrastive batch; the contrastive loss grows with it.
    """
    paths = joined(data)
    require_paths(paths)
    folders = (locate_checkpoint(checkpoint), locate_checkpoint(baseline))

    from grr_coca.cli.tasks import load_checkpoint, measure_paths  # late: torch comes with it
    from grr_coca.study.demo.table import average_row, format_table, row
    from grr_coca.study.running.measured import row_metrics

    models = (load_checkpoint(folders[0]), load_checkpoint(folders[1]))
    first, second = (measure_paths(model, paths, batch_size) for model in models)
    rows = [row(path, row_metrics(first[path].evaluation), row_metrics(second[path].evaluation)) for path in first]
    if len(rows) > 1:
        rows.append(average_row("average", rows))
    presets = (models[0].preset, models[1].preset)
    names = presets if presets[0] != presets[1] else (checkpoint, baseline)
    why_unlike = _why_unlike(models, [(first[path].num_tokens, second[path].num_tokens) for path in first])
    unlike = () if why_unlike is None else OF_TOKENS
    print(format_table(rows, names, unlike))
    print(f"contrastive loss of batches of {batch_size} pairs; R@1 text to image; changes over {names[1]}")
    if why_unlike is not None:
        print(f"perplexity and CoCa loss {why_unlike}, and cannot be compared")
    print("differences, with intervals of level 0.95 over images of the split (not over seeds of training):")
    for path in first:
        print(f"{path}: {_differences(first[path], second[path], unlike)}")


def _why_unlike(models: "tuple[Checkpoint, Checkpoint]", num_tokens: list[tuple[int, int]]) -> str | None:
    """Why means over the tokens of two models are of different tokens; None: they are of the same."""
    if not models[0].tokenizer.has_vocabulary_of(models[1].tokenizer):
        return "are means over tokens of different vocabularies"
    if any(one != other for one, other in num_tokens):
        lengths = " and ".join(str(model.config.text_decoder.context_length) for model in models)
        return f"are of captions that are cut to different lengths (contexts of {lengths} tokens)"
    return None


def _differences(first: "Measured", second: "Measured", unlike: tuple[str, ...]) -> str:
    keys = {title: key for title, key in DIFFERENCES.items() if key not in unlike}
    found = {title: first.measures[key].difference(second.measures[key]) for title, key in keys.items()}
    return "; ".join(f"{title} {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for title, d in found.items())
