"""The order of the data: a function of (seed, epoch, samples seen) and of nothing else."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from grr_coca.errors import UserError

PLAIN_SHUFFLE = 65_536
"""Up to so many samples an epoch is one random permutation."""

BLOCK, BLOCKS_PER_WINDOW = 128, 256
"""Larger sources are shuffled in two steps, so that disks read mostly in order: blocks of consecutive samples are put
in random order, and the samples within a window of so many blocks are shuffled."""


class SampleRef(NamedTuple):
    """One visit of one sample."""

    epoch: int
    sample: int


class Shuffle:
    """Endless shuffled epochs, with the sample at any position found at once.

    All of its state is the position: what it keeps of the epoch and the window at hand is there to be quick.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError("there is no sample to put in order")
        self.num_samples = num_samples
        self.seed = seed
        self._epoch = -1
        self._window = (-1, -1)
        self._is_plain = num_samples <= PLAIN_SHUFFLE
        self._blocks = self._window_starts = self._samples = np.zeros(0, dtype=np.int64)

    def at(self, position: int) -> SampleRef:
        """The visit at a position in the endless sequence."""
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._enter_epoch(epoch)
        window = int(np.searchsorted(self._window_starts, offset, side="right")) - 1
        if (epoch, window) != self._window:
            self._enter_window(epoch, window)
        return SampleRef(epoch, int(self._samples[offset - self._window_starts[window]]))

    def _enter_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        if self._is_plain:
            self._window_starts = np.zeros(1, dtype=np.int64)
            return
        self._blocks = np.random.default_rng((self.seed, epoch)).permutation(-(-self.num_samples // BLOCK))
        ends = np.cumsum(np.minimum(BLOCK, self.num_samples - self._blocks * BLOCK))  # one block may be short
        self._window_starts = np.concatenate([[0], ends[BLOCKS_PER_WINDOW - 1 : -1 : BLOCKS_PER_WINDOW]])

    def _enter_window(self, epoch: int, window: int) -> None:
        self._window = (epoch, window)
        if self._is_plain:
            self._samples = np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)
            return
        blocks = self._blocks[window * BLOCKS_PER_WINDOW : (window + 1) * BLOCKS_PER_WINDOW]
        samples = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        samples = samples[samples < self.num_samples]
        self._samples = np.random.default_rng((self.seed, epoch, 1 + window)).permutation(samples)


class TrainingOrder:
    """Endless shuffled epochs, cut into global batches. A batch may span two epochs, so no sample is ever dropped.

    Iterating gives this rank's part of the global batches `first_batch` … `num_batches` - 1, in micro-batches. The
    global sequence depends on number of samples, seed and batch size alone, so a run goes on exactly where it
    stopped, on whatever number of ranks and workers and in whatever micro-batches.

    Args:
        num_samples: of the source.
        batch_size: of the global batch.
        num_batches: global batches of the whole run, those before `first_batch` counted.
        seed: of the order.
        first_batch: where to begin.
        rank: which contiguous share of each global batch is given.
        world_size: number of shares.
        micro_batch_size: pairs that are given at a time, the last ones of a batch may be fewer; None: the share whole.

    Raises:
        UserError: the batch cannot be shared evenly among the ranks.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        num_batches: int,
        seed: int,
        first_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
    ) -> None:
        if batch_size % world_size:
            lower = batch_size // world_size * world_size
            fitting = " or ".join(str(size) for size in (lower, lower + world_size) if size)
            raise UserError(
                f"data: batch_size {batch_size} cannot be shared evenly among {world_size} processes; give {fitting}"
            )
        assert 0 <= rank < world_size
        self.shuffle = Shuffle(num_samples, seed)
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.first_batch = first_batch
        self.share = batch_size // world_size
        self.rank = rank
        self.micro_batch_size = micro_batch_size or self.share

    def __len__(self) -> int:
        return max(self.num_batches - self.first_batch, 0) * -(-self.share // self.micro_batch_size)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for batch in range(self.first_batch, self.num_batches):
            start = batch * self.batch_size + self.rank * self.share
            for position in range(start, start + self.share, self.micro_batch_size):
                stop = min(position + self.micro_batch_size, start + self.share)
                yield [self.shuffle.at(i) for i in range(position, stop)]


class EvaluationOrder:
    """Every sample once, in the source's order; the last batch may be smaller.

    Ranks take turns, batch by batch, and all of them have as many: where the batches do not divide, the first ones
    come once more at the end.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    @property
    def num_batches(self) -> int:
        """Batches of all ranks, none counted twice."""
        return -(-self.num_samples // self.batch_size)

    def __len__(self) -> int:
        return -(-self.num_batches // self.world_size)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for turn in range(len(self)):
            start = (turn * self.world_size + self.rank) % self.num_batches * self.batch_size
            yield [SampleRef(0, index) for index in range(start, min(start + self.batch_size, self.num_samples))]
