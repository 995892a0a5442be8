"""What every benchmark says about where it ran, and how it keeps its results."""

import json
import os
import platform
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str | int | None]:
    """The machine, without its name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return {
        "processor": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def has_amx() -> bool:
    """Whether the processor multiplies bf16 matrices in tiles."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text()


def report(name: str, rows: list[dict[str, object]]) -> None:
    """Print a table and write `results/NAME.json`."""
    where = machine()
    print(f"{name}: {where['processor']}, {where['cores']} cores, torch {where['torch']}, Python {where['python']}")
    width = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in [dict(zip(width, width, strict=True)), *rows]:
        print("  ".join(f"{row[key]!s:<{width[key]}}" for key in width))
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": where, "rows": rows}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
