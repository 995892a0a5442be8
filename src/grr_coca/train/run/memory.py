"""Memory of a training process on a CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of options in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let the allocator keep what is freed, where it is glibc's.

    It would give each large tensor back to the system, which zeroes the pages of the next one: at every step all
    activations and gradients anew. Measured in `docs/performance-log.md`.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none, and no need of it
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
