"""Builds the device that is none, and makes it known to PyTorch, for the rest of this process."""

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.cpp_extension import include_paths, library_paths

SOURCE = Path(__file__).with_name("device.cpp")
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


def build_device(library: Path) -> None:
    """Compile it. This takes a few seconds."""
    includes = [part for path in include_paths() for part in ("-isystem", path)]
    libraries = [f"-L{path}" for path in library_paths()]
    command = [str(COMPILER), "-shared", "-fPIC", "-std=c++20", "-O0", *includes, str(SOURCE), "-o", str(library)]
    subprocess.run([*command, *libraries, "-lc10", "-ltorch_cpu"], check=True)


def add_device(library: Path) -> torch.device:
    """Add the device to PyTorch, and return it. This cannot be undone."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend("elsewhere")
    functions = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_amp_supported_dtype=lambda: [torch.bfloat16],
        _is_in_bad_fork=lambda: False,
    )
    torch._register_device_module("elsewhere", functions)
    return torch.device("elsewhere", 0)


def waits() -> int:
    """How often a number of the device was read, or waited for, until now."""
    return torch.ops.elsewhere.waits()
