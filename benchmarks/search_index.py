"""What the exact comparison of a search costs: `python benchmarks/search_index.py`.

A query of 256 numbers is multiplied with all embeddings, which are read from a file in half precision, and the best 20
are taken: in a process with all instructions of the processor, and in one with AVX2 alone, with a thread for each core.
Writes `results/search.json`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from harness import in_turn, machine, parse, parser_of, seconds, write

from grr_coca_search.embedded.vectors import VectorFile, append_rows, products, top_k_rows

COUNTS, ROUNDS = (100_000, 1_000_000), 9
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""What keeps torch to the instructions of an ordinary processor."""


def main() -> None:
    """Measure, and write the results."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--counts", type=int, nargs="+", help="print these numbers of pictures alone, and write nothing"
    )
    options = parse(parser)
    if options.counts:
        print(json.dumps(exact_search(options.counts)))
        return
    program = [sys.executable, __file__, "--counts", *map(str, [1000] if options.smoke else COUNTS)]
    environments = {"all": os.environ, "avx2": {**os.environ, **AVX2}}
    found = {name: json.loads(subprocess.check_output(program, env=env)) for name, env in environments.items()}
    write("search", {"machine": machine(), "exact_milliseconds_256": found}, options.out)
    print(found)


def exact_search(counts: list[int]) -> dict[str, float]:
    """Milliseconds on the clock of one exact query, by the number of pictures."""
    found = {}
    for count in counts:
        vectors = np.random.default_rng(0).standard_normal((count, 256), np.float32).astype(np.float16)
        query = vectors[7].astype(np.float32)[None]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vectors"
            append_rows(path, 0, vectors)
            file = VectorFile(path, *vectors.shape)
            side = {"ours": lambda: seconds(lambda: top_k_rows(products(file, query)[:, 0], 20))}  # noqa: B023
            found[str(count)] = round(statistics.median(in_turn(side, ROUNDS)["ours"]) * 1000, 1)
    return found


if __name__ == "__main__":
    main()
