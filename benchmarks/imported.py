"""open_clip's CoCa captioning by our engine and by its own: `coca_ViT-B-32` with the same random weights.

    python benchmarks/imported.py --peer-python .venv-peers/bin/python

One thread each, fp32, in turns. What is compared are seconds of CPU time, so other work on the machine counts less.
Writes `results/imported.json`. On a quiet machine it takes some five minutes, most of it open_clip's beams.
"""

import statistics
import sys
import tempfile

from captioning import NEVER, start_contestant
from machine import parse, parser_of, report
from workers import Worker

ROUNDS = 3
SLOW = 30.0
"""Seconds of CPU time; a cell in which open_clip takes longer is measured once."""
CELLS = {"greedy-1": ("greedy", 1), "greedy-8": ("greedy", 8), "beam-8": ("beam", 8)}
"""Decoding and number of images, of which each has one caption, or six beams."""
GOALS = {"greedy-1": 2.5, "greedy-8": 4.0, "beam-8": 12.0}
TOKENS = 20


def main() -> None:
    """Measure all cells, and write the report."""
    options = parse(parser_of(__doc__, peers=True))
    if options.peer_python is None:
        sys.exit(0)  # without open_clip, there is nothing to import
    tokens, rounds = (2, 1) if options.smoke else (TOKENS, ROUNDS)
    with (
        tempfile.TemporaryDirectory() as folder,
        start_contestant("exported", options.peer_python, 1, folder=folder) as theirs,
        start_contestant("imported", sys.executable, 1, folder=folder) as ours,
    ):
        ours.ask(NEVER, what="caption", method="greedy", batch=2, tokens=2)  # lays the weights out, once for a model
        rows = [_row(name, ours, theirs, tokens, rounds) for name in CELLS]
    report("imported", rows, options.out)


def _row(name: str, ours: Worker, theirs: Worker, tokens: int, rounds: int) -> dict[str, object]:
    method, batch = CELLS[name]
    times: dict[str, list[float]] = {"ours": [], "open_clip": []}
    for _ in range(rounds):
        for side, contestant in (("ours", ours), ("open_clip", theirs)):
            answer = contestant.ask(NEVER, what="caption", method=method, batch=batch, tokens=tokens)
            times[side].append(answer["cpu_seconds"])
        if times["open_clip"][0] > SLOW:
            break
    medians = {side: statistics.median(found) for side, found in times.items()}
    print(name, times, flush=True)
    return {
        "decoding": name,
        "tokens": tokens,
        "rounds": len(times["ours"]),
        "ours_s": round(medians["ours"], 3),
        "open_clip_s": round(medians["open_clip"], 3),
        "ratio": round(medians["open_clip"] / medians["ours"], 2),
        "goal": GOALS[name],
    }


if __name__ == "__main__":
    main()
