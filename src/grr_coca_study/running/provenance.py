"""Provenance of rows, so that they can be compared: initial weights, order of the data, code, and machine."""

import hashlib
import json
import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from grr_coca.common.errors import DiskError
from grr_coca.common.files import read_json, write_bytes_atomic
from grr_coca.data.order import SampleSequence
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.train.recipe import Recipe
from grr_coca.train.setup import training_sources, training_visits

_START_FILE = "beginning.json"
_HASH_DIGITS = 12
_MAX_HASHED_VISITS = 1_000_000
"""Maximum number of samples whose order is hashed. Hashing takes seconds."""


def provenance(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Return the provenance fields of a run's row.

    The run's folder contains the hashes of its start, unless the run diverged before it began.
    """
    path = folder / _START_FILE
    return {
        "commit": code_commit(),
        "machine": _machine_name(),
        "precision": _precision_name(recipe),
        **(read_json(path) if path.exists() else {}),
    }


def write_start_hashes(recipe: Recipe, start: Checkpoint, folder: Path) -> None:
    """Hash the initial weights and the order of the data, and write the hashes to the run's folder.

    The keys in the file are fields of the row. A resumed run reads the hashes from this file. The start weights of a
    fine-tuning are not hashed, because no two arms share them.

    Raises:
        DiskError: If the folder cannot be written to.
    """
    pairs, _ = training_sources(recipe)
    num_visits = recipe.schedule.steps * recipe.data.batch_size
    found = {
        "initial_weights": {} if recipe.model is None else weight_hashes(start.model),
        "data_order": order_hash(training_visits(recipe, pairs), num_visits),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(folder / _START_FILE, json.dumps(found).encode())
    except OSError as error:
        raise DiskError(f"{folder}: the run folder cannot be written to ({error.strerror})") from error


def weight_hashes(model: nn.Module) -> dict[str, str]:
    """Return a hash of each parameter, by name and shape."""
    return {
        f"{name} {list(parameter.shape)}": _hash(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        for name, parameter in model.named_parameters()
    }


def order_hash(visits: SampleSequence, num_visits: int) -> str:
    """Return a hash of the order of the data: the epochs and indices of the first samples, and the number of all
    samples."""
    hashed = np.array([visits.at(position) for position in range(min(num_visits, _MAX_HASHED_VISITS))], dtype="<i8")
    return _hash(np.append(hashed.ravel(), np.int64(num_visits)).astype("<i8"))


def _hash(content: np.ndarray) -> str:
    return hashlib.sha256(content.tobytes()).hexdigest()[:_HASH_DIGITS]


# --- Code and machine

_SOURCE = Path(__file__).parents[2]
"""Folder that contains all packages, which is `src` in a clone."""


@lru_cache(maxsize=1)
def code_commit() -> str:
    """Return the commit of the code, or the version of the package outside of git.

    The commit is followed by `+` if package files have been changed since this commit. A package in a user's
    repository, such as in its `.venv`, counts as outside of git.
    """
    commit = _git("ls-files", "--error-unmatch", "grr_coca/__init__.py") and _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return f"version {version('grr-coca')}"
    return commit + ("+" if _git("status", "--porcelain", "--", ".") else "")


@lru_cache(maxsize=1)
def _machine_name() -> str:
    """Return the processor or GPU, its instruction set, and the version of torch.

    The result contains no host name, so it is anonymous.
    """
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    return f"{device}, torch {torch.__version__}"


def _precision_name(recipe: Recipe) -> str:
    """Return the precision of forward and backward passes, and of Muon's products if it differs."""
    muon = recipe.optimizer.muon_precision
    if recipe.optimizer.name != "muon" or muon == recipe.precision:
        return recipe.precision
    return f"{recipe.precision}, Muon in {muon}"


def _git(*arguments: str) -> str:
    """Return the output of git in the folder of the packages, or an empty string if git fails or is missing."""
    try:
        done = subprocess.run(["git", "-C", str(_SOURCE), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
