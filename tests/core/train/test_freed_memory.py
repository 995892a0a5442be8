"""Memory that stays with the process, seen from outside of it."""

import platform
from pathlib import Path

import pytest
import torch
from processes import launch

from grr_coca.train.step import keep_freed_memory


def resident() -> int:
    """MiB of this process that lie in memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def measure(keep: bool, file: Path) -> None:
    """Write the MiB of 320 that are still there once they are freed."""
    if keep:
        keep_freed_memory()
    before = resident()
    tensors = [torch.ones(2**22) for _ in range(20)]  # 16 MiB each
    del tensors
    file.write_text(str(resident() - before))


@pytest.mark.ci
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another one")
def test_freed_memory_stays_with_the_process(tmp_path):
    for keep in (False, True):
        launch(tmp_path, measure, keep, tmp_path / str(keep)).finish()
    given_back, kept = (int((tmp_path / str(keep)).read_text()) for keep in (False, True))
    assert kept - given_back > 200, f"of 320 MiB, {kept} stay with the process, and {given_back} without it"
