"""What indexing and searching cost, next to two ways by hand: with our own model, and with open_clip.

    python benchmarks/search_index.py --peer-python .venv-peers/bin/python

Takes 10,000 pictures of the corpus `icons`, or of those that come with the code if it was never fetched, and writes
`results/search.json`. One thread. The sides take turns, 1,000 pictures each: ours makes captions and embeddings in one
pass, commits them and keeps everything of an index; by hand, all is embedded, or captioned; open_clip embeds and
captions, with a model of our size. Ratios are medians over the turns, of seconds of CPU time: on a machine that others
use too, wall time tells how busy they are.
"""

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, parse, parser_of, write
from workers import Worker

import grr_coca
from grr_coca.common.files import user_cache
from grr_coca.data.images import decode_image
from grr_coca.model.shipped_models import DEFAULT
from grr_coca.search.embedded.vectors import best_rows, products
from grr_coca.search.image_files import find_images

ROOT = Path(__file__).parents[1]
PICTURES, TURN = 10_000, 1000
LIMIT = 3600.0
"""Seconds in which open_clip must answer."""
COUNTS = (100_000, 1_000_000)
"""Pictures that are searched exactly."""
SMOKE = {"pictures": 60, "turn": 30, "counts": [1000], "rounds": 1}
CAPTIONED = 128
"""Pictures of a turn that open_clip captions: its time is that of all by their number."""
QUERY = "a red heart"
Seconds = dict[str, float]


def seconds(work: Callable[[], object]) -> Seconds:
    """How long some work takes, on the clock and of the processor."""
    began, cpu_began = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began}


def gather(folder: Path, count: int, turn: int) -> tuple[list[Path], str]:
    """Folders of picture files, so many a turn, and what they are of."""
    icons = sorted((user_cache() / "icons").glob("train-*.tar"))
    contents = of_shards(icons) if icons else of_code()
    folders = []
    for start in range(0, count, turn):
        folders.append(folder / f"{start:06}")
        folders[-1].mkdir(parents=True)
        for number in range(start, min(start + turn, count)):
            (folders[-1] / f"{number:06}.webp").write_bytes(next(contents))
    return folders, "icons" if icons else "drawings"


def of_shards(shards: list[Path]) -> Iterator[bytes]:
    """Pictures of shards, as they come."""
    for shard in shards:
        with tarfile.open(shard) as tar:
            yield from (tar.extractfile(member).read() for member in tar if member.name.endswith(".webp"))


def of_code() -> Iterator[bytes]:
    """Pictures of the corpora that come with the code; beyond their number, mirrored and turned."""
    from PIL import ImageOps

    for turn in (lambda image: image, ImageOps.mirror, ImageOps.flip, ImageOps.invert):
        for image in find_images(sorted(str(path) for path in ROOT.glob("datasets/*/*.tar"))):
            file = io.BytesIO()
            turn(decode_image(image.read(), image.name)).save(file, "WEBP")
            yield file.getvalue()


AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""What keeps torch to the instructions of an ordinary processor."""


def exact_of_processors(counts: Sequence[int]) -> dict[str, dict[str, float]]:
    """`exact_search` with all that the processor has, and with AVX2 alone."""
    program = [sys.executable, __file__, "--exact", *map(str, counts)]
    sides = {"all": os.environ, "avx2": {**os.environ, **AVX2}}
    return {name: json.loads(subprocess.check_output(program, env=env)) for name, env in sides.items()}


def exact_search(counts: Sequence[int], repetitions: int = 9) -> dict[str, float]:
    """Milliseconds on the clock of one exact query of 256 numbers, by the number of pictures."""
    found = {}
    for count in counts:
        vectors = np.random.default_rng(0).standard_normal((count, 256), np.float32).astype(np.float16)
        find = partial(_find, vectors, vectors[7].astype(np.float32)[None])
        times = [seconds(find) for _ in range(repetitions)]
        found[str(count)] = round(statistics.median(time["seconds"] for time in times) * 1000, 1)
    return found


def _find(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    return best_rows(products(vectors, query)[:, 0], 20)


def medians(sides: dict[str, Callable[[], Seconds]], rounds: int) -> dict[str, float]:
    """The median milliseconds of CPU time of each side, all of them in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            times[name].append(work()["cpu_seconds"] * 1000)
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def main() -> None:
    """Measure, and write the results."""
    parser = parser_of(__doc__, peers=True)
    parser.add_argument(
        "--exact", type=int, nargs="+", help="print the exact search of so many pictures alone, and write nothing"
    )
    options = parse(parser)
    if options.exact:
        print(json.dumps(exact_search(options.exact)))
        return
    size = SMOKE if options.smoke else {"pictures": PICTURES, "turn": TURN, "counts": COUNTS, "rounds": 15}
    peer = Worker("open_clip", "search_contestant.py", {}, options.peer_python) if options.peer_python else None
    place = Path(tempfile.mkdtemp())
    try:
        results = measured(place, peer, **size)
    finally:
        shutil.rmtree(place)
    write("search", results, options.out)
    print(json.dumps(results, indent=1))


def measured(
    place: Path, peer: Worker | None, pictures: int, turn: int, counts: Sequence[int], rounds: int
) -> dict[str, object]:
    """All that is measured of so many pictures; without a peer, what is compared with it is left out."""
    folders, kind = gather(place / "pictures", pictures, turn)
    model = grr_coca.load(DEFAULT)
    rows: list[np.ndarray] = []
    paths: list[Path] = []
    turns: list[dict[str, Seconds]] = []
    with grr_coca.Index.open(place / "index", create=True) as index:
        for work in (model.caption, model.embed_images):  # loads and lays out what is made once
            work(sorted(folders[0].iterdir())[:32])
        for folder in folders:
            files = sorted(folder.iterdir())
            turns.append(
                {
                    "index": seconds(lambda: index.add(folder)),  # noqa: B023
                    **(_by_open_clip(peer, files) if peer else {}),
                    "embed": seconds(lambda: rows.append(model.embed_images(files))),  # noqa: B023
                    "caption": seconds(lambda: model.caption(files)),  # noqa: B023
                }
            )
            paths += files
        index.add(place / "pictures")  # finds all of it once under this argument
        nothing_new = seconds(lambda: index.add(place / "pictures"))
        querying = queries(index, model, np.concatenate(rows), paths, peer, rounds)
    if peer:
        peer.close()
    totals = {name: sum(turn[name]["cpu_seconds"] for turn in turns) for name in turns[0]}

    def ratio(of: str, to: str) -> float:
        found = (sum(turn[name]["cpu_seconds"] for name in of.split()) / turn[to]["cpu_seconds"] for turn in turns)
        return round(statistics.median(found), 3)

    return {
        "machine": machine(),
        "pictures": pictures,
        "kind": kind,
        "peer": peer.about if peer else None,
        "cpu_seconds": {name: round(value, 2) for name, value in totals.items()},
        "wall_seconds": {name: round(sum(turn[name]["seconds"] for turn in turns), 2) for name in turns[0]},
        "index_per_second": round(pictures / totals["index"], 1),
        "share_of_embed_and_caption": ratio("embed caption", "index"),
        **({name: ratio(*sides) for name, sides in PEER_RATIOS.items()} if peer else {}),
        "second_run_seconds": round(nothing_new["seconds"], 2),
        "query_milliseconds": querying,
        **({"open_clip_over_query": round(querying["words_by_open_clip"] / querying["words"], 2)} if peer else {}),
        "exact_milliseconds_256": exact_of_processors(counts),
    }


PEER_RATIOS = {
    "open_clip_embed_over_index": ("open_clip_embed", "index"),
    "open_clip_embed_over_embed": ("open_clip_embed", "embed"),
    "open_clip_both_over_index": ("open_clip_embed open_clip_caption", "index"),
}


def _by_open_clip(peer: Worker, files: list[Path]) -> dict[str, Seconds]:
    embedded = peer.ask(LIMIT, what="embed", paths=[str(path) for path in files])
    captioned = peer.ask(LIMIT, what="caption", paths=[str(path) for path in files[:CAPTIONED]])
    more = len(files) / len(files[:CAPTIONED])
    return {
        "open_clip_embed": embedded,
        "open_clip_caption": {unit: value * more for unit, value in captioned.items()},
    }


def queries(
    index: grr_coca.Index, model: Any, matrix: np.ndarray, paths: list[Path], peer: Worker | None, rounds: int
) -> dict[str, float]:
    """Milliseconds of a query: of an embedding, of words to paths, and the whole search with all that a hit has."""
    vector = model.embed_texts(QUERY)

    def by_hand() -> None:
        scored = ((float(row @ vector), path) for row, path in zip(matrix, paths, strict=True))
        sorted(scored, reverse=True)[:20]

    def words() -> None:
        with index.store.snapshot():
            nearest = index.store.nearest(model.embed_texts(QUERY), 20)
            index.store.entries([match.id for match in nearest])

    return medians(
        {
            "embedding": lambda: seconds(lambda: index.store.nearest(vector, 20)),
            "embedding_by_hand": lambda: seconds(by_hand),
            "embedding_by_numpy": lambda: seconds(lambda: np.argsort(-(matrix @ vector))[:20]),
            "words": lambda: seconds(words),
            **({"words_by_open_clip": lambda: peer.ask(LIMIT, what="query", text=QUERY)} if peer else {}),
            "search": lambda: seconds(lambda: index.search(QUERY)),
        },
        rounds,
    )


if __name__ == "__main__":
    main()
