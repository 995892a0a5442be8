"""The forecast of a training step on this machine, for `grr-coca info --batch`."""

from collections.abc import Sequence

import torch

from grr_coca.config import CoCaConfig
from grr_coca.study.forecast import DTYPES, Forecast, Precision, forecast, matmul_rate, memory, mfu_in_fp32

GIB = 2**30


def step_forecast(config: CoCaConfig, batch: int, lengths: Sequence[int]) -> str:
    """A line for each precision and length of captions, after the assumptions and before the memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    rates = {precision: matmul_rate(precision, device) for precision in DTYPES}
    measured = ", ".join(f"{precision} {rate / 1e9:,.0f} GFLOP/s" for precision, rate in rates.items())
    mfu = mfu_in_fp32(config)
    lines = [
        f"a training step of {batch} pairs on this machine ({where})",
        f"matrix products, just now: {measured}",
        f"assumed: in fp32 a step reaches {mfu.assumed:.0%} of that ({mfu.low:.0%} to {mfu.high:.0%}); "
        "what is not a product takes as long in bf16",
    ]
    lines += [_line(forecast(config, batch, rates, p, length), p, length) for p in DTYPES for length in lengths]
    lines.append("memory, GiB: weights + gradients + optimizer + activations of the whole batch, an estimate")
    lines += [_memory_line(config, batch, precision, length) for precision in DTYPES for length in lengths]
    return "\n".join(lines)


def _line(step: Forecast, precision: Precision, text_length: int) -> str:
    fastest, slowest = step.fastest_and_slowest
    return (
        f"  {precision}, {text_length} tokens: {step.flops / 1e9:,.1f} GFLOP  {step.seconds:.3g} s "
        f"({fastest:.3g} to {slowest:.3g})  {step.images_per_second:.3g} images/s  MFU {step.mfu:.0%}"
    )


def _memory_line(config: CoCaConfig, batch: int, precision: Precision, text_length: int) -> str:
    held = memory(config, batch, precision, text_length)
    summands = " + ".join(f"{size / GIB:.2f}" for size in held.values())
    return f"  {precision}, {text_length} tokens: {sum(held.values()) / GIB:.2f} = {summands}"
