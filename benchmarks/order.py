"""State, time to seek and memory of index and order for 12 million samples: `python benchmarks/order.py`.

The index is that of 1,200 shards of 10,000 pairs each. It is written to a temporary folder without the shards, in
whose place lie empty files of a shard's size that take no room on disk. About 500 MB are written there.
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import parse, parser_of, report

from grr_coca.data.order import GlobalBatches, Shuffle, TrainingOrder
from grr_coca.data.sources.shards import MIN_SHARD_SIZE, TarShards, write_index
from grr_coca.data.sources.tar import ROW_DTYPE, ShardIndex

NUM_SHARDS, PAIRS_PER_SHARD, BATCH_SIZE = 1_200, 10_000, 4_096
TARGETS = {"state, bytes": 1024, "seek, s": 1.0, "memory, MB": 200}


def write_set(folder: Path, num_shards: int) -> list[Path]:
    """Shards of nothing, each with an index beside it."""
    rows = np.zeros(PAIRS_PER_SHARD, ROW_DTYPE)
    number = np.arange(PAIRS_PER_SHARD)
    rows["image_block"], rows["image_size"] = 1 + 80 * number, 30_000
    rows["text_block"], rows["text_size"] = 70 + 80 * number, 60
    rows["key_end"] = 9 * (number + 1)
    paths = []
    for shard in range(num_shards):
        path = folder / f"{shard:05d}.tar"
        path.touch()
        os.truncate(path, MIN_SHARD_SIZE + 512 * 80 * PAIRS_PER_SHARD)
        keys = b"".join(b"%05d%04d" % (shard, i) for i in range(PAIRS_PER_SHARD))
        write_index(ShardIndex(rows, keys, True), path.with_name(path.name + ".index"), path)
        paths.append(path)
    return paths


def memory() -> float:
    """Return megabytes that this process has in memory, shared pages of files counted."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    """Measure; the seek is the worst of 20 to random batches of 100 epochs."""
    options = parse(parser_of(__doc__))
    if not Path("/proc/self/statm").exists():
        sys.exit("order: this system does not tell how much memory a process has; Linux does")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_set(Path(folder), 3 if options.smoke else NUM_SHARDS)
        before = memory()
        source = TarShards(paths)
        num_samples = len(source)
        seeks = []
        rng = np.random.default_rng(0)
        for first in rng.integers(0, 100 * num_samples // BATCH_SIZE, 20):
            began = time.perf_counter()
            batches = GlobalBatches(BATCH_SIZE, int(first) + 10, int(first))
            next(iter(TrainingOrder(Shuffle(num_samples, seed=0), batches)))
            seeks.append(time.perf_counter() - began)
        # A stretch of training: every sample's place is looked up, as a worker does before it reads.
        order = TrainingOrder(Shuffle(num_samples, seed=0), GlobalBatches(BATCH_SIZE, 40))
        for batch in order:
            for ref in batch:
                source.name(ref.sample)
        rows = [
            {"what": "state, bytes", "measured": len(str(int(first))), "target": f"<= {TARGETS['state, bytes']}"},
            {"what": "seek, s", "measured": round(max(seeks), 4), "target": f"<= {TARGETS['seek, s']}"},
            {"what": "memory, MB", "measured": round(memory() - before, 1), "target": f"<= {TARGETS['memory, MB']}"},
        ]
        report("order", rows, options.out)


if __name__ == "__main__":
    main()
