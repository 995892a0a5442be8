"""Losses and retrieval of a checkpoint on several splits, for `evaluate` and `compare`."""

from pathlib import Path

import torch

from grr_coca.checkpoint import Checkpoint, from_pretrained
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.checkpoint import Measured, measure_checkpoint
from grr_coca.losses import LossWeights


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load a checkpoint on the GPU if there is one, else on the CPU."""
    return from_pretrained(folder, "cuda" if torch.cuda.is_available() else "cpu")


def measure_paths(checkpoint: Checkpoint, paths: tuple[str, ...], batch_size: int) -> dict[str, Measured]:
    """Losses and retrieval on each path, by path, with the paper's loss weights."""
    return {path: measure_checkpoint(checkpoint, open_source(path), batch_size, LossWeights()) for path in paths}
