"""What a second core gains, and what a busy neighbour costs: verbs of `grr-coca` on one core, on all, and on all beside
a process that keeps one core busy.

    python benchmarks/busy.py

`caption`, `index`, `embed` and `classify` do 1,000 pictures, with ONNX Runtime and with PyTorch; `evaluate` and
`pretrain` do the committed pictograms, with PyTorch. Each runs on as many threads as it takes by itself. The three
kinds of runs take turns, and ratios are medians over the turns. What counts is time on the clock, with the start of the
program: the machine must be idle otherwise. Writes `results/busy.json`. Fifteen minutes on two cores.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from harness import in_turn, parse, parser_of, pictures, ratio, report, seconds

from grr_coca.train.recipe import load_recipe, save_recipe

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "pictograms.yaml"
PICTURES = 1000
ROUNDS = {"onnx": 5, "torch": 3}
STEPS = 40
"""Steps of training, of 128 pairs."""
VERBS = [(verb, "onnx") for verb in ("caption", "index", "embed", "classify")]
VERBS += [(verb, "torch") for verb in ("caption", "index", "evaluate", "pretrain")]
TRAINING = ("evaluate", "pretrain")
SMOKE = [("caption", "onnx")]
GOALS = {"two_cores": 1.7, "kept": 0.45}
SPIN = "while True: pass"


def main() -> None:
    """Measure, and write the report."""
    options = parse(parser_of(__doc__))
    rows = rows_of(SMOKE, smoke=True) if options.smoke else rows_of(VERBS, smoke=False)
    report("busy", rows, options.out)


def rows_of(verbs: Sequence[tuple[str, str]], *, smoke: bool) -> list[dict[str, object]]:
    """Return a row of the report for each of some commands with an engine."""
    count, steps = (4, 1) if smoke else (PICTURES, STEPS)
    with tempfile.TemporaryDirectory() as place:
        folder, single = Path(place, "pictures"), Path(place, "picture")
        folder.mkdir()
        single.mkdir()
        for number, content in enumerate(islice(pictures(), count)):
            (folder / f"{number:04}.webp").write_bytes(content)
        shutil.copy(folder / "0000.webp", single)
        whole, recipe = load_recipe(RECIPE), Path(place, "recipe.yaml")
        save_recipe(replace(whole, schedule=replace(whole.schedule, steps=steps, warmup_steps=1)), recipe)
        return [
            _row(
                verb,
                engine,
                _commands(verb, engine, folder, recipe),
                None if verb in TRAINING else _commands(verb, engine, single, recipe),
                1 if smoke else ROUNDS[engine],
            )
            for verb, engine in verbs
        ]


def _commands(verb: str, engine: str, folder: Path, recipe: Path) -> Iterator[list[str]]:
    """Yield the arguments of a command, whose output is new each time."""
    program = [sys.executable, "-m", "grr_coca", verb]
    number = 0
    while True:
        number += 1
        out = ["--out", str(folder.parent / f"{verb}-{engine}-{folder.name}-{number}")]
        if verb == "evaluate":
            yield [*program, "icons", "--data", str(ROOT / "datasets" / "pictograms" / "test-*.tar")]
        elif verb == "pretrain":
            yield [*program, str(recipe), *out]
        else:
            flags = {"index": out, "embed": [*out[:1], f"{out[1]}.npy"], "classify": ["--labels", "heart,star,circle"]}
            yield [*program, str(folder), "--engine", engine, *flags.get(verb, [])]


def _row(
    verb: str, engine: str, commands: Iterator[list[str]], starts: Iterator[list[str]] | None, rounds: int
) -> dict[str, object]:
    """Args: `starts`: the same command on a single picture, whose time is that of the program's start."""

    def busy() -> float:
        with _neighbour():
            return _seconds(next(commands))

    sides: dict[str, Callable[[], float]] = {} if starts is None else {"start": lambda: _seconds(next(starts))}
    sides |= {"one": lambda: _seconds(next(commands), cores=1), "quiet": lambda: _seconds(next(commands)), "busy": busy}
    times = in_turn(sides, rounds)
    medians = {side: round(statistics.median(found), 2) for side, found in times.items()}
    after_start = None
    if starts is not None:
        turns = zip(times["start"], times["one"], times["quiet"], strict=True)
        after_start = round(statistics.median((one - start) / (quiet - start) for start, one, quiet in turns), 2)
    return {
        "verb": verb,
        "engine": engine,
        "start_seconds": medians.get("start"),
        "one_core_seconds": medians["one"],
        "quiet_seconds": medians["quiet"],
        "busy_seconds": medians["busy"],
        "two_cores": round(ratio(times["one"], times["quiet"]), 2),
        "two_cores_after_start": after_start,
        "two_cores_goal": None if verb in TRAINING else GOALS["two_cores"],
        "kept": round(ratio(times["quiet"], times["busy"]), 2),
        "kept_goal": GOALS["kept"],
    }


def _seconds(command: list[str], cores: int | None = None) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    usable = os.sched_getaffinity(0)
    run = partial(subprocess.run, command, check=True, capture_output=True, env=environment)
    try:
        os.sched_setaffinity(0, sorted(usable)[:cores])  # a child inherits it
        return seconds(run)
    finally:
        os.sched_setaffinity(0, usable)


@contextmanager
def _neighbour() -> Iterator[None]:
    """Another process computes, wherever the system puts it."""
    process = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
