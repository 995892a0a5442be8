"""What it takes to install and to start: without PyTorch, and with it.

    python benchmarks/footprint.py

Sizes are those of the packages in this environment that `pyproject.toml` asks for, with all that they need: nothing is
installed. Seconds are CPU time of a new process that captions one drawing, the engines in turns. Writes
`results/footprint.json` in a minute.
"""

import resource
import statistics
import subprocess
import sys
import tomllib
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from harness import in_turn, parse, parser_of, report, seconds
from packaging.requirements import Requirement

from grr_coca.model.checkpoint_files import FOLDER

ROOT = Path(__file__).parents[1]
CAPTION = [sys.executable, "-m", "grr_coca", "caption", str(ROOT / "docs" / "drawings" / "guitar.webp"), "--engine"]
ENGINES: dict[str, list[str]] = {"onnx": [], "torch": ["torch"]}
"""Each with the extras that it takes."""
ROUNDS = 5


def main() -> None:
    """Measure, and write the report."""
    options = parse(parser_of(__doc__))
    commands = {
        engine: partial(subprocess.run, [*CAPTION, engine], check=True, capture_output=True) for engine in ENGINES
    }
    times = in_turn(
        {engine: partial(seconds, run, cpu_of_children) for engine, run in commands.items()},
        1 if options.smoke else ROUNDS,
    )
    rows: list[dict[str, object]] = []
    for engine, extras in ENGINES.items():
        rows.append({"what": "installed MB", "engine": engine, "measured": round(megabytes(extras))})
    for engine, found in times.items():
        rows.append({"what": "first caption s", "engine": engine, "measured": round(statistics.median(found), 2)})
    report("footprint", rows, options.out)


def cpu_of_children() -> float:
    """Return seconds of CPU time of the programs that this one started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def megabytes(extras: list[str]) -> float:
    """The size of our own package with the models that ship, and of all packages that it needs with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(name for extra in extras for name in project["optional-dependencies"][extra])]
    sizes = {"": sum(path.stat().st_size for path in FOLDER.parents[1].rglob("*") if path.is_file())}
    waiting = [Requirement(line) for line in asked]
    while waiting:
        need = waiting.pop()
        if need.name in sizes or (need.marker is not None and not need.marker.evaluate({"extra": ""})):
            continue
        try:
            found = distribution(need.name)
        except PackageNotFoundError:  # what another system needs
            continue
        files = (Path(str(found.locate_file(path))) for path in found.files or ())
        sizes[need.name] = sum(path.stat().st_size for path in files if path.is_file())
        waiting += [Requirement(line) for line in found.requires or ()]
    return sum(sizes.values()) / 1e6


if __name__ == "__main__":
    main()
