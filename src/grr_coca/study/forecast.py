"""What a training step should take on this machine: counted FLOPs over rates that are measured here and now.

A step costs three forward passes over its pairs. In fp32 it reaches a share of the best matrix product's rate, the
model FLOPs utilization (MFU), which is assumed. What it does besides matrix products takes as long in bf16, whose
products may be many times as fast: so the MFU in bf16 follows. `benchmarks/LOG.md` shows how straight the lines
of time against FLOPs are that this relies on.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grr_coca.config import CoCaConfig
from grr_coca.study.anatomy import flops_per_pair, num_parameters, saved_bytes_per_pair

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

TRAINING_PASSES = 3
"""A backward pass costs two forward passes."""
PROBE_SIZE = {"cpu": 1536, "cuda": 8192}
PROBE_SECONDS = 0.3

NARROW = 256
"""Channels; below, much of a step is spent outside of matrix products."""


@dataclass(frozen=True)
class Mfu:
    """Share of the best matrix product's rate that a step reaches in fp32: what is assumed, and within which range."""

    low: float
    assumed: float
    high: float


MFU_OF_NARROW, MFU_OF_WIDE = Mfu(0.2, 0.3, 0.5), Mfu(0.5, 0.65, 0.9)

BYTES_PER_PARAMETER = {"parameters": 4, "gradients": 4, "optimizer": 8}
"""Weights, gradients and both of AdamW's moments are kept in fp32."""
ACTIVATION_BYTES = {"fp32": 1.0, "bf16": 0.55}
"""In units of what fp32 keeps: autocast halves matrices' inputs, not what norms and the residual stream keep."""


@dataclass(frozen=True)
class Forecast:
    """A training step. `rate`: FLOP/s of a matrix product in its precision; `fp32_rate`: in fp32."""

    batch: int
    flops: int
    rate: float
    fp32_rate: float
    mfu_in_fp32: Mfu

    def seconds_at(self, mfu_in_fp32: float) -> float:
        """Matrix products at full rate, and the rest, which is what keeps a step in fp32 from that rate."""
        return self.flops / self.rate + (1 / mfu_in_fp32 - 1) * self.flops / self.fp32_rate

    @property
    def seconds(self) -> float:
        """With the assumed share."""
        return self.seconds_at(self.mfu_in_fp32.assumed)

    @property
    def fastest_and_slowest(self) -> tuple[float, float]:
        """In seconds."""
        return self.seconds_at(self.mfu_in_fp32.high), self.seconds_at(self.mfu_in_fp32.low)

    @property
    def mfu(self) -> float:
        """In the precision of the step."""
        return self.flops / self.seconds / self.rate

    @property
    def images_per_second(self) -> float:
        """With the assumed share."""
        return self.batch / self.seconds


def training_flops(config: CoCaConfig, batch: int, text_length: int | None = None) -> int:
    """FLOPs of a training step; `text_length` as in `flops_per_pair`."""
    return TRAINING_PASSES * batch * flops_per_pair(config, text_length)


def mfu_in_fp32(config: CoCaConfig) -> Mfu:
    """What is assumed of a model."""
    width = min(config.image_encoder.transformer.embed_dim, config.text_decoder.transformer.embed_dim)
    return MFU_OF_NARROW if width < NARROW else MFU_OF_WIDE


def forecast(
    config: CoCaConfig, batch: int, rates: Mapping[Precision, float], precision: Precision, text_length: int
) -> Forecast:
    """A step of `batch` pairs where matrix products reach `rates`, FLOP/s by precision."""
    flops = training_flops(config, batch, text_length)
    return Forecast(batch, flops, rates[precision], rates["fp32"], mfu_in_fp32(config))


def memory(config: CoCaConfig, batch: int, precision: Precision, text_length: int | None = None) -> dict[str, int]:
    """Bytes that a step takes, by what they hold; activations are what one undivided batch keeps for its backward
    pass, those of gradient checkpointing or of smaller pieces are fewer."""
    parameters = num_parameters(config)
    held = {name: size * parameters for name, size in BYTES_PER_PARAMETER.items()}
    saved = batch * saved_bytes_per_pair(config, text_length)
    return {**held, "activations": round(saved * ACTIVATION_BYTES[precision])}


def matmul_rate(precision: Precision, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """The rate of a square matrix product on this machine, in FLOP/s: the best of at least two within `PROBE_SECONDS`.

    `clock`: gives the time in seconds.
    """
    size = PROBE_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
    _timed(a, b, clock)  # the first one sets up kernels and threads
    times = [_timed(a, b, clock), _timed(a, b, clock)]
    while sum(times) < PROBE_SECONDS:
        times.append(_timed(a, b, clock))
    return 2 * size**3 / min(times)


def _timed(a: Tensor, b: Tensor, clock: Callable[[], float]) -> float:
    started = clock()
    (a @ b)[0, 0].item()  # waits for the device
    return clock() - started
