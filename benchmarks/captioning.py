"""Captions per second, side by side with open_clip's CoCa and with BLIP of transformers.

    python benchmarks/captioning.py --peer-python .venv-peers/bin/python [--only sampling-8-20]
    python benchmarks/captioning.py --peer-python .venv-peers/bin/python --precision int8 --models FOLDER

Random weights of equal sizes, fp32, the same images, the same number of new tokens, the end token ruled out. One
process each, of two threads; only one computes at a time; the contestants take turns within each cell. open_clip
captions with transformers 4 only (before 4.56, where its beam search loses a class), so the others live in an
environment of their own, with the same torch; `make bench-captioning` makes it.

Writes `captioning.json` and `.png` in `benchmarks/results/`, anew after each cell, so that a run cut short loses
nothing. On a quiet machine of two cores it takes about 20 minutes, most of it open_clip's. `--precision int8` measures
ours in ONNX Runtime and in int8 against the peers in fp32, on one thread, and writes `captioning-int8.json`; it makes
the model in the folder `--models`, which takes minutes, and finds it there later.
"""

import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from engines import graphs_of, random_checkpoint
from harness import Worker, WorkerError, in_turn, machine, parse, parser_of, write
from plots import captioning_plot

ROUNDS, SLOW = 3, 30.0
"""A cell whose first round takes more than so many seconds is measured once."""


class Cell(NamedTuple):
    """What is decoded, who against whom, and how many times as fast as the peer we mean to be, by precision of ours."""

    method: str
    batch: int
    tokens: int
    peer: str
    goals: dict[str, float]

    @property
    def name(self) -> str:
        """For `--only`."""
        return f"{self.method}-{self.batch}-{self.tokens}"


CELLS = [
    Cell("greedy", 1, 20, "blip", {"fp32": 1, "int8": 2.5}),
    Cell("greedy", 8, 20, "blip", {"fp32": 1, "int8": 2.5}),
    Cell("greedy", 32, 20, "blip", {"fp32": 1}),
    Cell("greedy", 1, 60, "blip", {"fp32": 1}),
    Cell("greedy", 8, 60, "blip", {"fp32": 1}),
    Cell("greedy", 32, 60, "blip", {"fp32": 1}),
    Cell("sampling", 1, 20, "open_clip", {"fp32": 4, "int8": 8}),
    Cell("sampling", 8, 20, "open_clip", {"fp32": 8, "int8": 12}),
    Cell("sampling", 32, 20, "open_clip", {"fp32": 10, "int8": 15}),
    Cell("sampling", 1, 60, "open_clip", {"fp32": 10, "int8": 12}),
    Cell("sampling", 8, 60, "open_clip", {"fp32": 20, "int8": 20}),
    Cell("beam", 8, 20, "open_clip", {"fp32": 12, "int8": 35}),
    Cell("sampling", 32, 60, "open_clip", {"fp32": 25, "int8": 30}),
    Cell("beam", 8, 60, "open_clip", {"fp32": 50}),
]
SMOKE = [
    *(Cell(method, 1, 2, "open_clip", {"fp32": 1, "int8": 1}) for method in ("sampling", "beam")),
    Cell("greedy", 1, 2, "blip", {"fp32": 1, "int8": 1}),
]
"""Each way of decoding, and each peer, once."""


def main() -> None:
    """Measure all cells, or those asked for, and write the report."""
    parser = parser_of(__doc__, peers=True, only=[cell.name for cell in CELLS])
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32", help="of ours; the peers are in fp32")
    parser.add_argument("--models", type=Path, help="folder of the model in int8")
    options = parse(parser)
    is_int8 = options.precision == "int8"
    if is_int8 and options.models is None:
        parser.error("--precision int8 needs --models FOLDER, which keeps the model")
    cells = SMOKE if options.smoke else [cell for cell in CELLS if cell.name in options.only]
    cells = [cell for cell in cells if options.precision in cell.goals]
    setup: dict[str, Any] = {"threads": 1 if is_int8 else 2, "is_small": bool(options.smoke)}
    if is_int8:
        graphs = graphs_of(random_checkpoint("b32", options.models), "int8", options.models / "b32-int8")
        setup["folder"] = str(graphs)
    ours = Worker("contestants.py", {**setup, "name": "quantized" if is_int8 else "ours"})
    contestants = {"ours": ours}
    for name in dict.fromkeys(cell.peer for cell in cells) if options.peer_python else ():
        try:
            contestants[name] = Worker("contestants.py", {**setup, "name": name}, options.peer_python)
        except WorkerError as error:
            print(f"{name} is not measured; see the top of {Path(__file__).name}\n{error}", file=sys.stderr)
    for batch in (1, 2):  # lays the weights out, once for a model
        ours.ask("caption", method="sampling", batch=batch, tokens=2)
    name = f"captioning-{options.precision}" if is_int8 else "captioning"
    report: dict[str, Any] = {
        "machine": {**machine(), "threads": setup["threads"], "precision": options.precision},
        "contestants": {name: contestant.about for name, contestant in contestants.items()},
        "cells": [],
    }
    for cell in cells:
        sides = {who: contestants[who] for who in ("ours", cell.peer) if who in contestants}
        found = measured(cell, sides, 1 if options.smoke else ROUNDS)
        ratio = None
        if cell.peer in found:
            ratio = statistics.median(found[cell.peer]) / statistics.median(found["ours"])
        print(f"{cell.name}, {cell.peer}: {found}, {ratio}", flush=True)
        told = {**cell._asdict(), "goal": cell.goals[options.precision], "seconds": found, "ratio": ratio}
        del told["goals"]
        report["cells"].append(told)
        write(name, report, options.out)
        if not is_int8:
            captioning_plot(report["cells"], options.out / "captioning.png")
    for contestant in contestants.values():
        contestant.close()


def measured(cell: Cell, sides: dict[str, Worker], rounds: int, clock: str = "seconds") -> dict[str, list[float]]:
    """Return the seconds that each side takes for a cell, in turn."""
    question = {"method": cell.method, "batch": cell.batch, "tokens": cell.tokens}
    asked = {name: lambda side=side: side.ask("caption", **question)[clock] for name, side in sides.items()}
    return in_turn(asked, rounds, fewest=1, within=SLOW)


if __name__ == "__main__":
    main()
