"""Forecasts the time and memory of a training step: counted FLOPs over a measured rate of matrix products.

A step costs three forward passes over its pairs. The model FLOPs utilization (MFU) in fp32 is assumed. In bf16, matrix
products may be many times as fast, but the rest of a step takes as long as in fp32; the MFU in bf16 follows from that.
`benchmarks/LOG.md` shows that time grows linearly with FLOPs, which this relies on.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grr_coca.model.anatomy import flops_per_pair, num_parameters, saved_bytes_per_pair
from grr_coca.model.config import CoCaConfig

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

TRAINING_PASSES = 3
"""Cost of a step in forward passes: one forward pass, and a backward pass that costs two."""
_PROBE_SIZE = {"cpu": 1536, "cuda": 8192}
_PROBE_SECONDS = 0.3

_NARROW = 256
"""Width below which much of a step is spent outside of matrix products."""


@dataclass(frozen=True)
class Mfu:
    """Model FLOPs utilization in fp32: the share of the rate of matrix products that a step reaches, and its range."""

    low: float
    assumed: float
    high: float


MFU_OF_NARROW, MFU_OF_WIDE = Mfu(0.2, 0.3, 0.5), Mfu(0.5, 0.65, 0.9)

_BYTES_PER_PARAMETER = {"parameters": 4, "gradients": 4, "optimizer": 8}
"""Weights, gradients and both moments of AdamW are fp32."""
_ACTIVATION_BYTES = {"fp32": 1.0, "bf16": 0.55}
"""Activation memory relative to fp32: autocast halves the inputs of matrix products, not of norms and residuals."""


@dataclass(frozen=True)
class Forecast:
    """Forecast of a training step. `rate`: FLOP/s of matrix products in its precision; `fp32_rate`: in fp32."""

    batch: int
    flops: int
    rate: float
    fp32_rate: float
    mfu_in_fp32: Mfu

    def seconds_at(self, mfu_in_fp32: float) -> float:
        """Seconds of a step for an MFU in fp32. All work but matrix products takes as long as in fp32."""
        return self.flops / self.rate + (1 / mfu_in_fp32 - 1) * self.flops / self.fp32_rate

    @property
    def seconds(self) -> float:
        """Seconds of a step with the assumed MFU."""
        return self.seconds_at(self.mfu_in_fp32.assumed)

    @property
    def fastest_and_slowest(self) -> tuple[float, float]:
        """Seconds of a step with the highest and with the lowest MFU of the range."""
        return self.seconds_at(self.mfu_in_fp32.high), self.seconds_at(self.mfu_in_fp32.low)

    @property
    def mfu(self) -> float:
        """MFU in the precision of the step."""
        return self.flops / self.seconds / self.rate

    @property
    def images_per_second(self) -> float:
        """Throughput with the assumed MFU."""
        return self.batch / self.seconds


def training_flops(config: CoCaConfig, batch: int, text_length: int | None = None) -> int:
    """FLOPs of a training step; `text_length` as in `flops_per_pair`."""
    return TRAINING_PASSES * batch * flops_per_pair(config, text_length)


def mfu_in_fp32(config: CoCaConfig) -> Mfu:
    """The assumed MFU of a model in fp32."""
    width = min(config.image_encoder.transformer.embed_dim, config.text_decoder.transformer.embed_dim)
    return MFU_OF_NARROW if width < _NARROW else MFU_OF_WIDE


def forecast(
    config: CoCaConfig, batch: int, rates: Mapping[Precision, float], precision: Precision, text_length: int
) -> Forecast:
    """Forecast a training step of `batch` pairs; `rates`: FLOP/s of matrix products by precision."""
    flops = training_flops(config, batch, text_length)
    return Forecast(batch, flops, rates[precision], rates["fp32"], mfu_in_fp32(config))


def memory(config: CoCaConfig, batch: int, precision: Precision, text_length: int | None = None) -> dict[str, int]:
    """Memory of a training step in bytes, by content.

    Activations are those of the whole batch at once; micro-batches and activation checkpointing need less.
    """
    parameters = num_parameters(config)
    held = {name: size * parameters for name, size in _BYTES_PER_PARAMETER.items()}
    saved = batch * saved_bytes_per_pair(config, text_length)
    return {**held, "activations": round(saved * _ACTIVATION_BYTES[precision])}


def matmul_rate(precision: Precision, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure the rate of a square matrix product on this machine, in FLOP/s: the best of two or more.

    `clock`: returns the time in seconds.
    """
    size = _PROBE_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
    _timed(a, b, clock)  # warm-up: sets up kernels and threads
    times = [_timed(a, b, clock), _timed(a, b, clock)]
    while sum(times) < _PROBE_SECONDS:
        times.append(_timed(a, b, clock))
    return 2 * size**3 / min(times)


def _timed(a: Tensor, b: Tensor, clock: Callable[[], float]) -> float:
    started = clock()
    (a @ b)[0, 0].item()  # waits for the device
    return clock() - started
