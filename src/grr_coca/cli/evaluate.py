"""`grr-coca evaluate`."""

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.splits import evaluate_paths, load
from grr_coca.evaluate.split import Evaluation


def run(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    data: tuple[str, ...] = (),
    batch_size: int = 64,
    json: bool = False,
) -> None:
    """Measure losses, perplexity and retrieval.

    Args:
        checkpoint: checkpoint or run folder.
        data: splits to evaluate on: .tar shards, patterns, or folders.
        batch_size: pairs per contrastive batch; the contrastive loss grows with it.
        json: print JSON.
    """
    evaluations = evaluate_paths(load(checkpoint), data, batch_size)
    if json:
        print(json_module.dumps({name: asdict(evaluation) for name, evaluation in evaluations.items()}, indent=2))
        return
    for name, evaluation in evaluations.items():
        print(f"{name}\n{describe(evaluation)}\n")


def describe(evaluation: Evaluation) -> str:
    """An evaluation for people."""
    e = evaluation
    recalls = [
        f"{direction:<17}" + "  ".join(f"{k} {share:.1%}" for k, share in shares.items())
        for direction, shares in (
            ("text to image", e.text_to_image),
            ("image to text", e.image_to_text),
            ("chance", e.chance),
        )
    ]
    lines = [
        f"pairs            {e.num_pairs:,}",
        f"contrastive loss {e.contrastive_loss:.4f}   (batches of {e.contrastive_batch_size} pairs)",
        f"perplexity       {e.perplexity:.4f}   (per token)",
        f"CoCa loss        {e.coca_loss:.4f}",
        *recalls,
    ]
    return "\n".join("  " + line for line in lines)
