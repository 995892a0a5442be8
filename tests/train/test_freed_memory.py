"""Memory that stays with the process, seen from outside of it."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys, torch
from grr_coca.train.run.memory import keep_freed_memory

def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

if sys.argv[1] == "keep":
    keep_freed_memory()
before = resident()
tensors = [torch.ones(2**22) for _ in range(20)]  # 16 MiB each
del tensors
print(resident() - before)
"""


def _left_over(how: str) -> int:
    """MiB of 320 that are still there once they are freed."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another one")
def test_freed_memory_stays_with_the_process() -> None:
    assert _left_over("give back") < 100
    assert _left_over("keep") > 250
