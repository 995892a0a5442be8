"""Checkpoints of open_clip to read."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from open_clip_files import random_checkpoint, write_hub_folder

from grr_coca_open_clip.checkpoints import SETTINGS, WEIGHTS


@pytest.fixture(scope="session")
def theirs() -> SimpleNamespace:
    return random_checkpoint()


@pytest.fixture(scope="session")
def written(theirs: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub_folder(theirs, tmp_path_factory.mktemp("written") / "hub")


@pytest.fixture
def write(theirs: SimpleNamespace, written: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a folder with these tensors and settings, or others."""

    def write_folder(name: str = "hub", tensors: dict | None = None, settings: dict | None = None) -> Path:
        settings = settings or theirs.settings
        if tensors is not None:
            return write_hub_folder(SimpleNamespace(tensors=tensors, settings=settings), tmp_path / name)
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS[0]).hardlink_to(written / WEIGHTS[0])  # megabytes, mostly CLIP's vocabulary
        (tmp_path / name / SETTINGS).write_text(json.dumps(settings))
        return tmp_path / name

    return write_folder
