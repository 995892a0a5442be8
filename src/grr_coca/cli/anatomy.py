"""The tables of `grr-coca info`: parts, parameters and FLOPs of models, and the forecast of a training step."""

from collections.abc import Sequence

import torch

from grr_coca.common.dict_to_dataclass import differences
from grr_coca.model.anatomy import count_parameters, flops_per_pair, parts, share_that_differs
from grr_coca.model.build import build_without_weights
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig
from grr_coca.train.forecast import DTYPES, Forecast, Precision, forecast, matmul_rate, memory, mfu_in_fp32

_GIB = 2**30


def print_tree(preset: str, size: str, config: CoCaConfig, lengths: Sequence[int]) -> None:
    """Print the parts of a preset, their parameters, and the FLOPs of a pair for each length of its caption."""
    model = build_without_weights(config)
    total = count_parameters(model)
    print(f"{preset}, size {size}")
    for part in parts(model):
        name = "  " * len(part.path) + part.path[-1] + (f" × {part.count}" if part.count > 1 else "")
        print(f"{name:<34}{part.kind:<20}{part.num_parameters:>13,}  {part.num_parameters / total:6.1%}")
    print(f"{'total':<54}{total:>13,}")
    for length in lengths:
        print(_flops_line(config, length))


def print_differences(names: tuple[str, str], size: str, configs: tuple[CoCaConfig, CoCaConfig]) -> None:
    """Print the differences between two presets."""
    models = (build_without_weights(configs[0]), build_without_weights(configs[1]))
    print(f"{names[0]} against {names[1]}, size {size}\n")
    print(f"{'part':<24}{names[0]:>20}{names[1]:>20}")
    for name, first in models[0].named_children():
        counts = (count_parameters(first), count_parameters(models[1].get_submodule(name)))
        print(f"{name:<24}{counts[0]:>20,}{counts[1]:>20,}")
    totals = [count_parameters(model) for model in models]
    print(f"{'all parameters':<24}{totals[0]:>20,}{totals[1]:>20,}   ({totals[0] / totals[1] - 1:+.2%})")
    flops = [flops_per_pair(config) for config in configs]
    print(f"{'FLOPs per pair, forward':<24}{flops[0]:>20,}{flops[1]:>20,}   ({flops[0] / flops[1] - 1:+.2%})\n")
    for key, first_value, second_value in differences(*configs):
        print(f"{key:<48}{first_value!s:>20}{second_value!s:>20}")
    print(f"\n{_shares(names, models)}")


def step_forecast(config: CoCaConfig, batch: int, lengths: Sequence[int]) -> str:
    """Forecast time and memory of a training step, for each precision and caption length."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    rates = {precision: matmul_rate(precision, device) for precision in DTYPES}
    measured = ", ".join(f"{precision} {rate / 1e9:,.0f} GFLOP/s" for precision, rate in rates.items())
    mfu = mfu_in_fp32(config)
    lines = [
        f"a training step of {batch} pairs on this machine ({where})",
        f"matrix products, just now: {measured}",
        f"assumed: in fp32 a step reaches {mfu.assumed:.0%} of that ({mfu.low:.0%} to {mfu.high:.0%}); "
        "what is not a matrix product takes as long in bf16",
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
    summands = " + ".join(f"{size / _GIB:.2f}" for size in held.values())
    return f"  {precision}, {text_length} tokens: {sum(held.values()) / _GIB:.2f} = {summands}"


def _shares(names: tuple[str, str], models: tuple[CoCa, CoCa]) -> str:
    shares = (share_that_differs(*models), share_that_differs(*reversed(models)))
    return f"parameters in parts that differ: {shares[0]:.1%} of {names[0]}, {shares[1]:.1%} of {names[1]}"


def _flops_line(config: CoCaConfig, text_length: int) -> str:
    forward = flops_per_pair(config, text_length)
    return (
        f"FLOPs per pair, caption of {text_length} tokens: "
        f"{forward / 1e9:.3f} GFLOP forward, {3 * forward / 1e9:.3f} in training"
    )
