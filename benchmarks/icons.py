"""What the model `icons` costs in use: milliseconds per picture and per query, on one core.

    python benchmarks/icons.py [--beside MODEL]
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/icons.py

Writes `results/icons.json`: under `ordinary` if the processor is held to AVX2, else under `fast`. With `--beside`, the
folder of another model or of an earlier version, the two take turns, and the result says how many times as fast `icons`
is: the median over the turns. Pictures are those of `pictograms`; what they show does not change the cost much, and the
length of a caption is that of the model.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

from harness import in_turn, machine, parse, parser_of, ratio, seconds, write

import grr_coca
from grr_coca.cli import exit_code
from grr_coca.data.image_files import find_images
from grr_coca.data.isolated import decode_image
from grr_coca.infer.image_text_model import ImageTextModel

SHARDS = Path(__file__).parents[1] / "datasets" / "pictograms"
PICTURES, QUERIES, ROUNDS = 512, 64, 9


def work_of(model: ImageTextModel, num_pictures: int, num_queries: int) -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed, each with the number of things that it does. Everything has run once, in small."""
    files = find_images([str(next(SHARDS.glob("test_style-*.tar")))])
    images = [decode_image(file.read(), file.name) for file in islice(files, num_pictures)]
    queries = [f"icon number {number}" for number in range(num_queries)]
    model.describe(images[:32])
    model.embed_texts(queries[0])
    return {
        "embedding": (lambda: model.embed_images(images), num_pictures),
        "caption_and_embedding": (lambda: model.describe(images), num_pictures),
        "query": (lambda: [model.embed_texts(query) for query in queries], num_queries),
    }


def main() -> None:
    """Measure, and write the result."""
    parser = parser_of(__doc__)
    parser.add_argument("--beside", type=Path, metavar="MODEL", help="folder of a model that takes turns with `icons`")
    options = parse(parser)
    num_pictures, num_queries, rounds = (8, 2, 1) if options.smoke else (PICTURES, QUERIES, ROUNDS)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    works = {
        str(name): work_of(grr_coca.load(name, "cpu"), num_pictures, num_queries)
        for name in ("icons", options.beside)
        if name is not None
    }
    found: dict[str, object] = {}
    gains = {}
    for what, (_, count) in works["icons"].items():
        times = in_turn({name: partial(seconds, work[what][0]) for name, work in works.items()}, rounds)
        found[f"{what}_milliseconds"] = round(statistics.median(times["icons"]) / count * 1000, 2)
        if options.beside is not None:
            gains[what] = round(ratio(times[str(options.beside)], times["icons"]), 2)
    if gains:
        found["times_as_fast"] = gains
    kind = "ordinary" if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2" else "fast"
    path = options.out / "icons.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[kind] = {"machine": machine(), **found}
    write("icons", results, options.out)
    print(kind, found)


if __name__ == "__main__":
    sys.exit(exit_code(main))
