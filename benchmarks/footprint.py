"""What it takes to install and to start: without PyTorch, and with it.

    python benchmarks/footprint.py

Sizes are those of the packages in this environment that `pyproject.toml` asks for, with all that they need: nothing is
installed. Seconds are CPU time of a new process, the engines in turns: a caption of one drawing, a search by words, and
the help of a verb. Writes `results/footprint.json` in a minute.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from machine import parse, parser_of, report
from packaging.requirements import Requirement

from grr_coca.model.shipped_models import DEFAULT, shipped_folder

ROOT = Path(__file__).parents[1]
DRAWINGS = ROOT / "docs" / "drawings"
GRR_COCA = [sys.executable, "-m", "grr_coca"]
ROUNDS = 5


def main() -> None:
    """Measure, and write the report."""
    options = parse(parser_of(__doc__))
    rounds = 1 if options.smoke else ROUNDS
    rows: list[dict[str, object]] = [
        {"what": "installed MB", "engine": engine, "measured": round(megabytes(extras))}
        for engine, extras in (("onnx", []), ("torch", ["torch"]))
    ]
    with tempfile.TemporaryDirectory() as place:
        index = str(Path(place, "index"))
        subprocess.run([*GRR_COCA, "index", str(DRAWINGS), "--out", index], check=True, capture_output=True)
        for what, command in {
            "first caption s": ["caption", str(DRAWINGS / "guitar.webp")],
            "search by words s": ["search", index, "a guitar"],
        }.items():
            rows += _seconds_of_engines(what, command, rounds)
        rows.append(_row("help of a verb s", "", [_cpu_seconds(["caption", "--help"]) for _ in range(rounds)]))
    report("footprint", rows, options.out)


def megabytes(extras: list[str]) -> float:
    """The size of our own package with the models that ship, and of all packages that it needs with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(name for extra in extras for name in project["optional-dependencies"][extra])]
    folder = shipped_folder(DEFAULT)
    assert folder is not None
    ours = sum(path.stat().st_size for path in folder.parents[1].rglob("*") if path.is_file())
    sizes: dict[str, int] = {}
    waiting = [Requirement(line) for line in asked]
    while waiting:
        need = waiting.pop()
        if need.name in sizes or (need.marker is not None and not need.marker.evaluate({"extra": ""})):
            continue
        try:
            found = distribution(need.name)
        except PackageNotFoundError:  # what another system needs
            continue
        files = (found.locate_file(path) for path in found.files or ())
        sizes[need.name] = sum(Path(str(path)).stat().st_size for path in files if Path(str(path)).is_file())
        waiting += [Requirement(line) for line in found.requires or ()]
    return (ours + sum(sizes.values())) / 1e6


def _seconds_of_engines(what: str, command: list[str], rounds: int) -> list[dict[str, object]]:
    seconds: dict[str, list[float]] = {"onnx": [], "torch": []}
    for _ in range(rounds):
        for engine, times in seconds.items():
            times.append(_cpu_seconds([*command, "--engine", engine]))
    return [_row(what, engine, times) for engine, times in seconds.items()]


def _row(what: str, engine: str, seconds: list[float]) -> dict[str, object]:
    return {"what": what, "engine": engine, "measured": round(statistics.median(seconds), 2)}


def _cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*GRR_COCA, *command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
