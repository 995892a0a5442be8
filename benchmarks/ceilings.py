"""What this machine can do at most: matrix products and memory, measured through torch in a process of its own.

`training.py` holds its steps against it, in the same run: a share of a ceiling says more than seconds do.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from workers import Worker, serve

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = {"4096³": (4096, 4096, 4096), "feed-forward": (1568, 768, 3072)}
"""Rows, inner width, outer width. The second: a ViT-B/32's 49 tokens of 32 images through one of its matrices."""
RUNS = 5
MEMORY_BYTES = 2**29
"""Beyond any cache that two cores have to themselves."""
SMALL_SHAPES, SMALL_MEMORY = {"256³": (256, 256, 256)}, 2**20
"""Of the smallest form, which measures nothing."""


def median_seconds(function: Callable[[], Tensor]) -> float:
    """Of a few runs, after one that does not count."""
    function()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gemm_rate(precision: str, shape: tuple[int, int, int]) -> float:
    """FLOP/s of `F.linear`."""
    rows, inner, outer = shape
    x = torch.randn(rows, inner).to(DTYPES[precision])
    weight = torch.randn(outer, inner).to(DTYPES[precision])
    return 2 * rows * inner * outer / median_seconds(partial(F.linear, x, weight))


def memory_rates(num_bytes: int) -> dict[str, float]:
    """Bytes a second: read (a sum), and copied (read and written, both counted)."""
    source = torch.ones(num_bytes // 4)
    target = torch.empty_like(source)
    return {
        "read": num_bytes / median_seconds(source.sum),
        "copy": 2 * num_bytes / median_seconds(partial(target.copy_, source)),
    }


class Ceilings:
    """A process that measures when asked."""

    def __init__(self, setup: dict[str, Any]) -> None:
        torch.set_num_threads(setup["threads"])
        self.shapes, self.num_bytes = (SMALL_SHAPES, SMALL_MEMORY) if setup["smoke"] else (SHAPES, MEMORY_BYTES)
        self.about = {"torch": torch.__version__}

    def gemm(self, precision: str) -> dict[str, float]:
        """FLOP/s by shape."""
        return {name: gemm_rate(precision, shape) for name, shape in self.shapes.items()}

    def memory(self) -> dict[str, float]:
        """Bytes a second."""
        return memory_rates(self.num_bytes)


def start(threads: int, environment: dict[str, str] | None = None, smoke: bool = False) -> Worker:
    """A process that measures `gemm` and `memory`, in the environment that shall be measured."""
    environment = {**(environment or {}), "OMP_NUM_THREADS": str(threads)}
    return Worker("ceilings", "ceilings.py", {"threads": threads, "smoke": smoke}, environment=environment)


if __name__ == "__main__":
    serve(Ceilings, ("gemm", "memory"))
