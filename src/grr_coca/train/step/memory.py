"""Memory of a training process on a CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of options in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let glibc's allocator keep freed memory. Other allocators are left as they are.

    By default it returns each large tensor to the system, and the system zeroes the pages of the next one. At every
    step that happens to all activations and gradients. `docs/performance-log.md` has the measurement.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries do not have it
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
