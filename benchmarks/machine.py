"""What every benchmark takes, what it says about where it ran, and how it keeps its results."""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PEERS = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"


def parser_of(description: str | None, peers: bool = False) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take, and with `peers` the interpreter of what ours is compared with."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    smoke = "run the smallest form, which shows that everything still works, and write its meaningless numbers there"
    parser.add_argument("--smoke", type=Path, metavar="FOLDER", help=smoke)
    if peers:
        parser.add_argument("--peer-python", default=str(PEERS), help="interpreter that has the peers")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of this process. With `--smoke`, `peer_python` is None where the peers are not installed."""
    options = parser.parse_args()
    if options.smoke is not None:
        options.out = options.smoke
        if "peer_python" in options and not _has_peers(options.peer_python):
            options.peer_python = None
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def _has_peers(python: str) -> bool:
    try:
        subprocess.run([python, "-c", "import open_clip"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        print(f"peers are not measured: {python} has no open_clip; `make bench` installs them", file=sys.stderr)
        return False
    return True


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


def report(name: str, rows: list[dict[str, object]], out: Path = RESULTS) -> None:
    """Print a table and write it to `NAME.json` in the folder `out`."""
    where = machine()
    print(f"{name}: {where['processor']}, {where['cores']} cores, torch {where['torch']}, Python {where['python']}")
    width = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in [dict(zip(width, width, strict=True)), *rows]:
        print("  ".join(f"{row[key]!s:<{width[key]}}" for key in width))
    write(name, {"machine": where, "rows": rows}, out)


def write(name: str, results: dict[str, Any], out: Path = RESULTS) -> None:
    """Write results to `NAME.json` in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
