"""Prefetch remote images during training. The training order of the samples determines which blocks come next."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from typing import Any

from grr_coca.data.order import BLOCK, PLAIN_SHUFFLE, Blocks, SampleRef, SampleSequence, TrainingOrder
from grr_coca.data.sources.base import PairSource

PREFETCH_DISTANCE = PLAIN_SHUFFLE // 2
"""Number of samples by which prefetching is ahead of training: one window of the training order."""

_RECENT = 1024
"""Number of recent blocks that are not requested again. It is larger than the number of blocks in two windows."""

_THREADS = 4
"""Number of blocks that a process fetches at the same time."""


class PrefetchRefs(list[SampleRef]):
    """The samples of a micro-batch, and the blocks that the worker of this micro-batch prefetches."""

    blocks: Sequence[range] = ()


class PrefetchOrder:
    """A `TrainingOrder` that also lists the blocks to prefetch, without changing samples or batches.

    The processes of a node divide the blocks among themselves.

    Args:
        order: Order of the samples.
        visits: The same visits as those of `order`, without siblings. They must be a separate object, because each
            object caches only one window.
        blocks: Blocks of samples that are prefetched together.
    """

    def __init__(self, order: TrainingOrder, visits: SampleSequence, blocks: Blocks) -> None:
        self._order = order
        self._visits = visits
        self._blocks = blocks
        self._local = int(os.environ.get("LOCAL_RANK", 0))
        self._num_local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        size, count = self._order.batches.size, self._order.batches.count
        done = start = self._order.batches.first * size
        recent: dict[range, None] = {}
        steps = -(-self._order.share_size // self._order.micro_batch_size)
        for number, refs in enumerate(self._order):
            chosen = PrefetchRefs(refs)
            blocks = []
            limit = min(start + (number // steps + 1) * size + PREFETCH_DISTANCE, count * size)
            for position in range(done, limit):
                block = self._blocks.block_of(self._visits.at(position).sample)
                if block not in recent and block.start // BLOCK % self._num_local == self._local:
                    blocks.append(block)
                recent.pop(block, None)
                recent[block] = None
                if len(recent) > _RECENT:
                    del recent[next(iter(recent))]
            done = limit
            chosen.blocks = blocks
            yield chosen


def prefetch_blocks(source: PairSource, blocks: Sequence[range]) -> None:
    """Start to fetch blocks of a source in threads of this process, without waiting for them.

    Errors are ignored, because reading the block later raises them.
    """
    for block in blocks:
        _queue(os.getpid()).put((source, block))


@cache
def _queue(process: int) -> "SimpleQueue[tuple[Any, range]]":  # noqa: ARG001 (threads do not survive a fork)
    queue: SimpleQueue[tuple[Any, range]] = SimpleQueue()
    for _ in range(_THREADS):
        threading.Thread(target=_fetch_all, args=(queue,), daemon=True).start()
    return queue


def _fetch_all(queue: "SimpleQueue[tuple[Any, range]]") -> None:
    while True:
        source, block = queue.get()
        with suppress(Exception):  # reading the block later will raise the error
            source.fetch(block)
