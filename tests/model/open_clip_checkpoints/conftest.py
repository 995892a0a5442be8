"""Checkpoints of open_clip to read."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from grr_coca.data.tokenizer import clip_bpe
from grr_coca.model.open_clip_checkpoints import read
from open_clip_files import random_checkpoint, write_hub_folder


@pytest.fixture(scope="session", autouse=True)
def _one_vocabulary():
    """CLIP's vocabulary is read once, and not with each checkpoint."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(read, "clip_bpe", cache(clip_bpe))
        yield


@pytest.fixture(scope="session")
def theirs() -> SimpleNamespace:
    return random_checkpoint()


@pytest.fixture
def write(theirs: SimpleNamespace, tmp_path: Path) -> Callable[..., Path]:
    """Write a folder with these tensors and settings, or others."""

    def write_folder(name: str = "hub", tensors: dict | None = None, settings: dict | None = None) -> Path:
        changed = SimpleNamespace(tensors=tensors or theirs.tensors, settings=settings or theirs.settings)
        return write_hub_folder(changed, tmp_path / name)

    return write_folder
