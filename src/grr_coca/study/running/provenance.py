"""Where a row comes from: the code, and the machine."""

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

from grr_coca.train.recipe import Recipe

PACKAGE = Path(__file__).parents[2]


@lru_cache(maxsize=1)
def code_commit() -> str:
    """The commit of the code, with a `+` if files of the package were changed since; its version outside of git.

    A package that is installed somewhere in a repository of the user's, as in its `.venv`, is outside.
    """
    commit = _git("ls-files", "--error-unmatch", "__init__.py") and _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return f"version {version('grr-coca')}"
    return commit + ("+" if _git("status", "--porcelain", "--", ".") else "")


@lru_cache(maxsize=1)
def machine_name() -> str:
    """Processor or GPU, what instructions it has, and torch's version; no name by which a machine could be found."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    return f"{device}, torch {torch.__version__}"


def precision_name(recipe: Recipe) -> str:
    """Of forward and backward passes, and of Muon's products where that is another one."""
    muon = recipe.optimizer.muon_precision
    if recipe.optimizer.name != "muon" or muon == recipe.precision:
        return recipe.precision
    return f"{recipe.precision}, Muon in {muon}"


def _git(*arguments: str) -> str:
    """What git says of the package's folder; nothing where that is not under git, or git is not there."""
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True)
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
