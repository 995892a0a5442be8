"""Training from an object store: `python benchmarks/remote.py`.

*Waiting*: `tiny` trains from a server of S3 (moto's) and from disk, in turn. The step has one core, the server and the
one worker have the other. The pairs are those of the demo's corpus, each image padded to 30,000 bytes, as CC12M's are.
Blocks are fetched 1,024 pairs ahead in place of 32,768, so that each step fetches as much as it reads.

*Opening*: a set of 1,243 shards with 12 million pairs. Their indexes are written without the shards, in whose place the
server has small objects. Each opening is a separate process. Its memory is the growth over that of a process that has
imported PyTorch, while it opens the set, goes through 40 batches of 4,096 and reads their captions: its own memory, and
pages of index files, which are counted as long as they are mapped, although processes share them and the system can
take them back. A worker is a copy of this process, as a loader has it, that reads 40 more batches.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness import HERE, parse, parser_of, report

sys.path.append(str(HERE.parent / "tests" / "shared"))
from stores import s3_environment, s3_server, upload
from support import write_tar

from grr_coca.common.ranks import Ranks
from grr_coca.data import prefetch
from grr_coca.data.batch import Batch
from grr_coca.data.order import GlobalBatches, Shuffle, TrainingOrder
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source, remote_shards
from grr_coca.data.sources.shards import index_remote, remote_index, write_index
from grr_coca.data.sources.tar import ROW_DTYPE, ShardIndex
from grr_coca.train.recipe import Recipe, load_recipe
from grr_coca.train.setup import new_checkpoint, training_batches, training_sources
from grr_coca.train.step import Trainer, build_trainer, count_tokens, resolve_precision

IMAGE_BYTES, PAIRS_PER_SHARD, STEPS, WARM_UP = 30_000, 512, 20, 4
NUM_SHARDS, PAIRS_OF_SHARD, BATCH_SIZE = 1_243, 9_655, 4_096
CAPTION = b"a drawing of something that is described in about as many words as CC12M has"
BUCKET = "benchmark"


def main() -> None:
    """Measure both, and write one table."""
    options = parse(parser_of(__doc__))
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder, s3_server(core=cores[-1]) as endpoint:
        os.environ.update(s3_environment(endpoint))
        os.environ["XDG_CACHE_HOME"] = folder
        rows = waiting(Path(folder), endpoint, cores, options.smoke is not None)
        rows += opening(endpoint, 3 if options.smoke else NUM_SHARDS)
    report("remote", rows, options.out)


# --- Waiting


def waiting(folder: Path, endpoint: str, cores: list[int], smoke: bool) -> list[dict[str, object]]:
    """Return the share of a step that waits for data, from disk and from S3."""
    recipe = load_recipe(HERE.parent / "recipes" / "pictograms.yaml")
    steps = 2 if smoke else STEPS
    paths = write_pairs(folder / "pairs", recipe, 2 * PAIRS_PER_SHARD if smoke else 8 * PAIRS_PER_SHARD)
    upload(endpoint, BUCKET, {path.name: path.read_bytes() for path in paths})
    pattern = f"{{00..{len(paths) - 1:02d}}}.tar"
    for file in remote_shards(f"s3://{BUCKET}/{pattern}"):
        index_remote(file)
    prefetch.PREFETCH_DISTANCE = 2 * PAIRS_PER_SHARD
    found: dict[str, tuple[float, float]] = {}
    for name, path in (("disk", str(folder / "pairs" / pattern)), ("S3", f"s3://{BUCKET}/{pattern}")):
        data = replace(recipe.data, train=path, num_workers=1, batch_size=16 if smoke else recipe.data.batch_size)
        found[name] = share_of_waiting(replace(recipe, data=data), cores, steps)
    return [
        {"what": f"step of tiny from {name}, s", "measured": round(step, 3), "target": ""}
        for name, (step, _) in found.items()
    ] + [
        {
            "what": f"waiting for data from {name}, % of a step",
            "measured": round(100 * wait, 1),
            "target": "<= 10" if name == "S3" else "",
        }
        for name, (_, wait) in found.items()
    ]


def write_pairs(folder: Path, recipe: Recipe, count: int) -> list[Path]:
    """Shards of pairs of the corpus, repeated under other keys, with images of `IMAGE_BYTES`."""
    source, _ = training_sources(recipe)
    paths = []
    for first in range(0, count, PAIRS_PER_SHARD):
        members = {}
        for number in range(first, first + PAIRS_PER_SHARD):
            pair = source[number % len(source)]
            members[f"{number:09d}.png"] = pair.image + os.urandom(IMAGE_BYTES - len(pair.image))
            members[f"{number:09d}.txt"] = pair.caption.encode()
        paths.append(write_tar(folder / f"{first // PAIRS_PER_SHARD:02d}.tar", members))
    return paths


def share_of_waiting(recipe: Recipe, cores: list[int], steps: int) -> tuple[float, float]:
    """Median seconds of a step with its waiting, and the share that all steps after the first ones waited."""
    alone = Ranks.current(torch.device("cpu"))
    start = new_checkpoint(recipe, alone)
    recipe = resolve_precision(recipe, start.model, alone.device).resolve_autos(recipe)
    trainer = build_trainer(recipe, start, alone)
    pairs, _ = training_sources(recipe)
    os.sched_setaffinity(0, {cores[-1]})  # for the worker, which is forked from here
    batches = training_batches(recipe, start, pairs, alone)
    first = next(batches)
    os.sched_setaffinity(0, {cores[0]})
    try:
        waits, wholes = take_steps(first, batches, trainer, steps + WARM_UP)
    finally:
        os.sched_setaffinity(0, set(cores))
    return statistics.median(wholes[WARM_UP:]), sum(waits[WARM_UP:]) / sum(wholes[WARM_UP:])


def take_steps(
    first: list[Batch], batches: Iterator[list[Batch]], trainer: Trainer, count: int
) -> tuple[list[float], list[float]]:
    """Return seconds that each step waited for its batch, and those of the whole step."""
    waits, wholes, batch = [], [], first
    for number in range(count):
        began = time.perf_counter()
        if number:
            batch = next(batches)
        got = time.perf_counter()
        trainer.step(batch, count_tokens(batch), number)
        waits.append(got - began)
        wholes.append(time.perf_counter() - began)
    return waits, wholes


# --- Opening


def opening(endpoint: str, num_shards: int) -> list[dict[str, object]]:
    """Return seconds of two openings of a large set, and the memory of the second."""
    upload(endpoint, BUCKET, {f"large/{shard:05d}.tar": b"%05d" % shard for shard in range(num_shards)})
    url = f"s3://{BUCKET}/large/{{00000..{num_shards - 1:05d}}}.tar"
    write_indexes(url)
    answers = []
    for _ in range(2):
        done = subprocess.run([sys.executable, __file__, "--open", url], check=True, capture_output=True, text=True)
        answers.append(json.loads(done.stdout))
    return [
        {"what": f"pairs in {num_shards:,} shards", "measured": answers[0]["pairs"], "target": ""},
        {"what": "opened the first time, s", "measured": round(answers[0]["seconds"], 2), "target": "<= 60"},
        {"what": "opened after, s", "measured": round(answers[1]["seconds"], 2), "target": "<= 2"},
        {"what": "memory of a process with PyTorch, MB", "measured": round(answers[1]["before"]), "target": ""},
        {
            "what": "more with the set, MB",
            "measured": round(answers[1]["own"] + answers[1]["mapped"]),
            "target": "<= 300",
        },
        {"what": "of which its own, MB", "measured": round(answers[1]["own"]), "target": ""},
        {"what": "own memory of a worker, MB", "measured": round(answers[1]["worker"]), "target": ""},
    ]


def write_indexes(url: str) -> None:
    """An index for each shard of the large set, as `data index` writes it."""
    number = np.arange(PAIRS_OF_SHARD)
    rows = np.zeros(PAIRS_OF_SHARD, ROW_DTYPE)
    rows["image_block"], rows["image_size"] = 1 + 64 * number, IMAGE_BYTES
    rows["text_block"], rows["text_size"] = 61 + 64 * number, len(CAPTION)
    rows["key_end"] = 9 * (number + 1)
    for shard, file in enumerate(remote_shards(url)):
        keys = b"".join(b"%05d%04d" % (shard, i) for i in range(PAIRS_OF_SHARD))
        index = ShardIndex(rows, keys, True, np.zeros(PAIRS_OF_SHARD, "<u4"), CAPTION * PAIRS_OF_SHARD)
        write_index(index, remote_index(file), file)


def memory() -> dict[str, float]:
    """Megabytes that this process has in memory, by kind, see proc_pid_status(5) and proc_pid_smaps_rollup(5)."""
    lines = Path("/proc/self/status").read_text() + Path("/proc/self/smaps_rollup").read_text().partition("\n")[2]
    sizes = (line.split() for line in lines.splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 / 1e6 for words in sizes if words[-1:] == ["kB"]}


def read_captions(source: PairSource, first: int) -> None:
    """Go through 40 batches of the order, from one of them on, and read their captions."""
    for batch in TrainingOrder(Shuffle(len(source), seed=0), GlobalBatches(BATCH_SIZE, first + 40, first)):
        for ref in batch:
            source.captions(ref.sample)


def open_large(url: str) -> None:
    """Open the set, and go through a stretch of its order. One line of JSON is printed."""
    before, began = memory(), time.perf_counter()
    source = open_source(url)
    opened = time.perf_counter() - began
    read_captions(source, 0)
    after = memory()
    numbers = {"pairs": len(source), "seconds": opened, "before": before["VmRSS"]}
    numbers |= {"own": after["RssAnon"] - before["RssAnon"], "mapped": after["RssFile"] - before["RssFile"]}
    print(json.dumps(numbers | {"worker": memory_of_worker(source)}))


def memory_of_worker(source: PairSource) -> float:
    """Return megabytes that a copy of this process does not share, after it has read captions."""
    told, says = os.pipe()
    if (worker := os.fork()) == 0:
        read_captions(source, 40)
        os.write(says, str(memory()["Private_Dirty"]).encode())
        os._exit(0)
    os.waitpid(worker, 0)
    return float(os.read(told, 100))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--open"]:
        open_large(sys.argv[2])
    else:
        main()
