"""What a second core gains, and what a busy neighbour costs: verbs of `grr-coca` on one core, on all, and on all beside
a process that keeps one core busy.

    python benchmarks/busy.py

`caption`, `index`, `embed` and `classify` do 1,000 pictures, with ONNX Runtime and with PyTorch; `evaluate` and
`pretrain` do the committed pictograms, with PyTorch. Each runs on as many threads as it takes by itself. The three
kinds of runs take turns, and ratios are medians over the turns. What counts is time on the clock, with the start of the
program: the machine must be idle otherwise. Writes `results/busy.json`. Fifteen minutes on two cores.
"""

import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from machine import parse, parser_of, report
from search_index import of_code

from grr_coca.train.recipe import Recipe, load_recipe, save_recipe

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
    is_smoke = options.smoke is not None
    report("busy", rows_of(SMOKE if is_smoke else VERBS, smoke=is_smoke), options.out)


def rows_of(verbs: Sequence[tuple[str, str]], *, smoke: bool) -> list[dict[str, object]]:
    """A row of the report for each of some verbs with an engine."""
    pictures, steps = (4, 1) if smoke else (PICTURES, STEPS)
    with tempfile.TemporaryDirectory() as place:
        folder, single = Path(place, "pictures"), Path(place, "picture")
        folder.mkdir()
        single.mkdir()
        for number, content in zip(range(pictures), of_code(), strict=False):
            (folder / f"{number:04}.webp").write_bytes(content)
        shutil.copy(folder / "0000.webp", single)
        recipe = Path(place, "recipe.yaml")
        save_recipe(of_steps(load_recipe(RECIPE), steps), recipe)
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


def of_steps(recipe: Recipe, steps: int) -> Recipe:
    """The same training for so many steps."""
    return replace(recipe, schedule=replace(recipe.schedule, steps=steps, warmup_steps=1))


def _commands(verb: str, engine: str, folder: Path, recipe: Path) -> Iterator[list[str]]:
    """The command of a verb. What it writes is new each time."""
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
    turns = []
    for _ in range(rounds):
        start = _seconds(next(starts)) if starts is not None else math.nan
        one_core = _seconds(next(commands), cores=1)
        quiet = _seconds(next(commands))
        with _neighbour():
            turns.append((start, one_core, quiet, _seconds(next(commands))))
    start, one_core, quiet, busy = (statistics.median(column) for column in zip(*turns, strict=True))
    work = statistics.median((one - start) / (two - start) for start, one, two, _ in turns)
    return {
        "verb": verb,
        "engine": engine,
        "start_seconds": None if starts is None else round(start, 2),
        "one_core_seconds": round(one_core, 2),
        "quiet_seconds": round(quiet, 2),
        "busy_seconds": round(busy, 2),
        "two_cores": round(statistics.median(one / two for _, one, two, _ in turns), 2),
        "two_cores_after_start": None if starts is None else round(work, 2),
        "two_cores_goal": None if verb in TRAINING else GOALS["two_cores"],
        "kept": round(statistics.median(two / beside for _, _, two, beside in turns), 2),
        "kept_goal": GOALS["kept"],
    }


def _seconds(command: list[str], cores: int | None = None) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    usable = os.sched_getaffinity(0)
    start = time.perf_counter()
    try:
        os.sched_setaffinity(0, sorted(usable)[:cores])  # a child inherits it
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    finally:
        os.sched_setaffinity(0, usable)
    return time.perf_counter() - start


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
