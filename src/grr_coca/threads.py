"""How many threads to compute with."""

import os


def num_threads() -> int:
    """`OMP_NUM_THREADS`, which PyTorch follows too, or else the number of cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
