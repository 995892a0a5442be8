"""What `grr-coca info --batch` says of a training step on this machine."""

from collections.abc import Sequence
from functools import partial

import torch

from grr_coca.config import CoCaConfig
from grr_coca.study.forecast import DTYPES, Precision, forecast, matmul_rate, memory

GIB = 2**30


def step_forecast(config: CoCaConfig, batch: int, lengths: Sequence[int]) -> str:
    """A block of lines for each length of captions, in both precisions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    lines = [f"a training step of {batch} pairs on this machine ({where})"]
    for precision in DTYPES:
        rate = matmul_rate(precision, device)
        line = partial(_line, config, batch, rate, precision)
        lines += [_assumption(config, rate, precision), *map(line, lengths)]
    lines.append("memory, GiB: weights + gradients + optimizer + activations of the whole batch, an estimate")
    lines += [_memory_line(config, batch, precision, length) for precision in DTYPES for length in lengths]
    return "\n".join(lines)


def _assumption(config: CoCaConfig, rate: float, precision: Precision) -> str:
    share = forecast(config, 1, rate, precision).share
    return (
        f"{precision}: a matrix product runs at {rate / 1e9:,.0f} GFLOP/s just now; assumed that a step reaches "
        f"{share.assumed:.0%} of it ({share.low:.0%} to {share.high:.0%} are likely)"
    )


def _line(config: CoCaConfig, batch: int, rate: float, precision: Precision, text_length: int) -> str:
    step = forecast(config, batch, rate, precision, text_length)
    fastest, slowest = step.range
    return (
        f"  {text_length:>4} tokens  {step.flops / 1e9:>12,.1f} GFLOP  {step.seconds:>9.3g} s "
        f"({fastest:.3g} to {slowest:.3g})  {step.images_per_second:>9.3g} images/s"
    )


def _memory_line(config: CoCaConfig, batch: int, precision: Precision, text_length: int) -> str:
    held = memory(config, batch, precision, text_length)
    summands = " + ".join(f"{size / GIB:.2f}" for size in held.values())
    return f"  {text_length:>4} tokens, {precision}  {sum(held.values()) / GIB:8.2f} = {summands}"
