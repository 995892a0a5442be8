"""What the model `icons` costs in use: milliseconds per picture and per query, on one core.

    python benchmarks/icons.py
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/icons.py

Writes `results/icons.json`: under `ordinary` if the processor is held to AVX2, else under `fast`. Pictures are those of
`pictograms`; what they show does not change the cost much, and the length of a caption is that of the model.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from machine import machine, parse, parser_of

import grr_coca
from grr_coca.data.image_files import find_images
from grr_coca.data.images import decode_image

SHARDS = Path(__file__).parents[1] / "datasets" / "pictograms"
PICTURES, QUERIES, ROUNDS = 512, 64, 5


def milliseconds(work: Callable[[], object], count: int, rounds: int) -> float:
    """The median time of some work, for each of the `count` things that it does."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) / count * 1000)
    return round(statistics.median(times), 2)


def main() -> None:
    """Measure, and write the result."""
    options = parse(parser_of(__doc__))
    num_pictures, num_queries, rounds = (8, 2, 1) if options.smoke else (PICTURES, QUERIES, ROUNDS)
    torch.set_num_threads(1)
    model = grr_coca.load("icons", "cpu")
    files = find_images([str(next(SHARDS.glob("test_style-*.tar")))])
    images = [decode_image(file.read(), file.name) for file in islice(files, num_pictures)]
    queries = [f"icon number {number}" for number in range(num_queries)]
    model.describe(images[:32])
    model.embed_texts(queries[0])
    work = {
        "embedding_milliseconds": (lambda: model.embed_images(images), num_pictures),
        "caption_and_embedding_milliseconds": (lambda: model.describe(images), num_pictures),
        "query_milliseconds": (lambda: [model.embed_texts(query) for query in queries], num_queries),
    }
    found = {name: milliseconds(do, count, rounds) for name, (do, count) in work.items()}
    kind = "ordinary" if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2" else "fast"
    path = options.out / "icons.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[kind] = {"machine": machine(), **found}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(kind, found)


if __name__ == "__main__":
    main()
