"""open_clip's CoCa captioning by our engine and by its own: `coca_ViT-B-32` with the same random weights.

    python benchmarks/imported.py --peer-python .venv-peers/bin/python

One thread each, fp32, in turns. What is compared are seconds of CPU time, so other work on the machine counts less.
Writes `results/imported.json`. On a quiet machine it takes some five minutes, most of it open_clip's beams.
"""

import statistics
import sys
import tempfile

from captioning import ROUNDS, Cell, measured
from harness import Worker, parse, parser_of, report

CELLS = [("greedy", 1, 2.5), ("greedy", 8, 4.0), ("beam", 8, 12.0)]
"""Decoding, number of images, of which each has one caption or six beams, and the aim."""
TOKENS = 20


def main() -> None:
    """Measure all cells, and write the report."""
    options = parse(parser_of(__doc__, peers=True))
    if options.peer_python is None:
        sys.exit(0)  # without open_clip, there is nothing to import
    tokens, rounds = (2, 1) if options.smoke else (TOKENS, ROUNDS)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        setup = {"threads": 1, "folder": folder}
        with (
            Worker("contestants.py", {**setup, "name": "exported"}, options.peer_python) as theirs,
            Worker("contestants.py", {**setup, "name": "imported"}) as ours,
        ):
            ours.ask("caption", method="greedy", batch=2, tokens=2)  # lays the weights out, once for a model
            sides = {"ours": ours, "open_clip": theirs}
            for method, batch, goal in CELLS:
                found = measured(Cell(method, batch, tokens, "open_clip", {}), sides, rounds, "cpu_seconds")
                medians = {side: statistics.median(times) for side, times in found.items()}
                rows.append(
                    {
                        "decoding": f"{method}-{batch}",
                        "tokens": tokens,
                        "rounds": len(found["ours"]),
                        "ours_s": round(medians["ours"], 3),
                        "open_clip_s": round(medians["open_clip"], 3),
                        "ratio": round(medians["open_clip"] / medians["ours"], 2),
                        "goal": goal,
                    }
                )
    report("imported", rows, options.out)


if __name__ == "__main__":
    main()
