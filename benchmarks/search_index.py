"""What indexing and searching cost, next to doing it by hand: embed all, keep the vectors, multiply in Python.

    python benchmarks/search_index.py --pictures 10000

Writes `results/search.json`. One core; the sides take turns, and medians are compared.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import machine

import grr_coca
from grr_coca.data.image_files.find import find_images
from grr_coca.data.images import decode_image
from grr_coca.search.embedded.vectors import best_rows, products

RESULTS = Path(__file__).parent / "results" / "search.json"
ROOT = Path(__file__).parents[1]


def seconds(work: Callable[[], object]) -> float:
    """How long some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def medians(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median time of each side, all of them in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


def gather(folder: Path, count: int) -> list[Path]:
    """Pictures of the corpora that come with the code, each a file; beyond their number, mirrored and turned."""
    from PIL import ImageOps

    folder.mkdir()
    shards = sorted(str(path) for path in ROOT.glob("datasets/*/*.tar"))
    paths: list[Path] = []
    for turn in (lambda image: image, ImageOps.mirror, ImageOps.flip, ImageOps.invert):
        for image in find_images(shards):
            if len(paths) == count:
                return paths
            path = folder / f"{len(paths):06}.webp"
            content = image.read()
            if turn.__name__ == "<lambda>":
                path.write_bytes(content)
            else:
                turn(decode_image(content, image.name)).save(path, "WEBP")
            paths.append(path)
    return paths


def exact_search() -> dict[str, float]:
    """Milliseconds of one exact query of 256 numbers, by the number of pictures."""
    found = {}
    for count in (100_000, 1_000_000):
        vectors = np.random.default_rng(0).standard_normal((count, 256), np.float32).astype(np.float16)
        query = vectors[7].astype(np.float32)[None]
        times = []
        for _ in range(9):
            began = time.perf_counter()
            best_rows(products(vectors, query)[:, 0], 20)
            times.append(time.perf_counter() - began)
        found[str(count)] = round(statistics.median(times) * 1000, 1)
    return found


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    paths = gather(place / "pictures", arguments.pictures)
    model = grr_coca.load("pictograms")
    number = iter(range(1000))

    def index() -> None:
        with grr_coca.Index.open(place / f"index-{next(number)}", create=True) as opened:
            opened.add(place / "pictures")

    by_hand: list[np.ndarray] = []

    def embed() -> None:
        by_hand[:] = [model.embed_images(paths).numpy()]

    indexing = medians({"index": index, "embed": embed, "caption": lambda: model.caption(paths)}, arguments.rounds)
    with grr_coca.Index.open(place / "index-0") as opened:
        nothing_new = seconds(lambda: opened.add(place / "pictures"))
        vector = model.embed_texts("a red heart").numpy()
        querying = medians(
            {
                "index": lambda: opened.store.nearest(vector, 20),
                "by_hand": lambda: sorted(
                    ((float(row @ vector), path) for row, path in zip(by_hand[0], paths, strict=True)), reverse=True
                )[:20],
                "numpy": lambda: np.argsort(-(by_hand[0] @ vector))[:20],
            },
            15,
        )
        whole_query = medians({"search": lambda: opened.search("a red heart")}, 7)["search"]
    both = indexing["embed"] + indexing["caption"]
    results = {
        "machine": machine(),
        "pictures": len(paths),
        "seconds": {name: round(value, 2) for name, value in indexing.items()},
        "index_per_second": round(len(paths) / indexing["index"], 1),
        "share_of_embed_and_caption": round(both / indexing["index"], 3),
        "second_run_seconds": round(nothing_new, 2),
        "query_milliseconds": {name: round(value * 1000, 2) for name, value in querying.items()},
        "search_milliseconds": round(whole_query * 1000, 1),
        "exact_milliseconds_256": exact_search(),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
