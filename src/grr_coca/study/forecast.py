"""What a training step should take on this machine: counted FLOPs over a rate that is measured here and now.

A step of a batch costs three forward passes over its pairs, a share of the best matrix product's rate turns that into
seconds, and both are put down in `docs/performance.md`, where the straight lines of time against FLOPs are shown.
"""

import time
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
class Share:
    """Of the best matrix product's rate that a training step reaches: what is assumed, and within which range."""

    low: float
    assumed: float
    high: float


MFU: dict[tuple[Precision, bool], Share] = {
    ("fp32", False): Share(0.5, 0.65, 0.85),
    ("bf16", False): Share(0.2, 0.4, 0.75),
    ("fp32", True): Share(0.15, 0.3, 0.5),
    ("bf16", True): Share(0.03, 0.1, 0.3),
}
"""By precision, and whether the model is narrow."""

BYTES_PER_PARAMETER = {"parameters": 4, "gradients": 4, "optimizer": 8}
"""Weights, gradients and both of AdamW's moments are kept in fp32."""
ACTIVATION_BYTES = {"fp32": 1.0, "bf16": 0.55}
"""In units of what fp32 keeps: autocast halves matrices' inputs, not what norms and the residual stream keep."""


@dataclass(frozen=True)
class Forecast:
    """A training step. `seconds` are those of the assumed share, with the range's fastest and slowest."""

    flops: int
    rate: float
    """FLOP/s of a matrix product, measured."""
    share: Share
    batch: int

    @property
    def seconds(self) -> float:
        """With the assumed share."""
        return self.flops / (self.rate * self.share.assumed)

    @property
    def range(self) -> tuple[float, float]:
        """Fastest and slowest, in seconds."""
        return self.flops / (self.rate * self.share.high), self.flops / (self.rate * self.share.low)

    @property
    def images_per_second(self) -> float:
        """With the assumed share."""
        return self.batch / self.seconds


def training_flops(config: CoCaConfig, batch: int, text_length: int | None = None) -> int:
    """FLOPs of a training step; `text_length` as in `flops_per_pair`."""
    return TRAINING_PASSES * batch * flops_per_pair(config, text_length)


def forecast(
    config: CoCaConfig, batch: int, rate: float, precision: Precision, text_length: int | None = None
) -> Forecast:
    """A step of `batch` pairs where a matrix product reaches `rate` FLOP/s."""
    width = min(config.image_encoder.transformer.embed_dim, config.text_decoder.transformer.embed_dim)
    return Forecast(training_flops(config, batch, text_length), rate, MFU[precision, width < NARROW], batch)


def memory(config: CoCaConfig, batch: int, precision: Precision, text_length: int | None = None) -> dict[str, int]:
    """Bytes that a step takes, by what they hold; activations are what one undivided batch keeps for its backward
    pass, those of gradient checkpointing or of smaller pieces are fewer."""
    parameters = num_parameters(config)
    held = {name: size * parameters for name, size in BYTES_PER_PARAMETER.items()}
    saved = batch * saved_bytes_per_pair(config, text_length)
    return {**held, "activations": round(saved * ACTIVATION_BYTES[precision])}


def matmul_rate(precision: Precision, device: torch.device) -> float:
    """FLOP/s of a square matrix product here and now: the best of as many as fit in a moment, two at least."""
    size = PROBE_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
    _timed(a, b)  # the first one sets up kernels and threads
    times = [_timed(a, b), _timed(a, b)]
    while sum(times) < PROBE_SECONDS:
        times.append(_timed(a, b))
    return 2 * size**3 / min(times)


def _timed(a: Tensor, b: Tensor) -> float:
    started = time.perf_counter()
    (a @ b)[0, 0].item()  # waits for the device
    return time.perf_counter() - started
