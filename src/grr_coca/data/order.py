"""Order in which samples are read. It depends only on the seed, the epoch and the number of samples seen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from grr_coca.common.shapes import Int
from grr_coca.data.sources.base import locate_part

PLAIN_SHUFFLE = 65_536
"""Maximum number of samples for which the order of an epoch is a single random permutation."""

BLOCK, _BLOCKS_PER_WINDOW = 128, 256
"""Number of samples per block, and number of blocks per window. Sources larger than `PLAIN_SHUFFLE` are shuffled in two
steps, so that disks read mostly in order. First, the blocks of `BLOCK` consecutive samples are shuffled, and then the
samples within each window of `_BLOCKS_PER_WINDOW` blocks.
"""


PERIOD = 1_000
"""Number of consecutive visits of a mixture within which each source gets exactly its fraction of the visits."""


class SampleRef(NamedTuple):
    """Visit to a sample: the epoch, and the index of the sample in its source."""

    epoch: int
    sample: int


@runtime_checkable
class SampleSequence(Protocol):
    """Endless sequence of visits to samples. The visit at any position can be computed directly."""

    def at(self, position: int) -> SampleRef:
        """Return the visit at a position in the sequence."""
        ...


class Blocks:
    """Blocks of consecutive samples that are read at about the same time.

    Args:
        lengths: Number of samples in each source of a mixture, or a list with the number of samples in a single source.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._ends = np.cumsum(lengths)

    def block_of(self, sample: int) -> range:
        """Return the indices of the samples in the block of a sample. The last block of a source may be shorter."""
        source, inner = locate_part(self._ends, sample)
        start = sample - inner % BLOCK
        return range(start, min(start + BLOCK, int(self._ends[source])))


class Shuffle:
    """Endless visits to the samples of a single source, which are shuffled in each epoch.

    The visits do not depend on any state. The fields for the current epoch and window are just a cache.

    Raises:
        ValueError: If there are no samples.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.num_samples = num_samples
        self.seed = seed
        self._epoch = -1
        self._window = (-1, -1)
        self._is_plain = num_samples <= PLAIN_SHUFFLE
        self._blocks = self._window_starts = self._samples = np.zeros(0, dtype=np.int64)

    def at(self, position: int) -> SampleRef:
        """Return the visit at a position in the sequence."""
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
        ends = np.cumsum(np.minimum(BLOCK, self.num_samples - self._blocks * BLOCK))  # one block may be shorter
        self._window_starts = np.concatenate([[0], ends[_BLOCKS_PER_WINDOW - 1 : -1 : _BLOCKS_PER_WINDOW]])

    def _enter_window(self, epoch: int, window: int) -> None:
        self._window = (epoch, window)
        if self._is_plain:
            self._samples = np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)
            return
        blocks = self._blocks[window * _BLOCKS_PER_WINDOW : (window + 1) * _BLOCKS_PER_WINDOW]
        samples = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        samples = samples[samples < self.num_samples]
        self._samples = np.random.default_rng((self.seed, epoch, 1 + window)).permutation(samples)


def mixture_fractions(mix: Mapping[str, float]) -> list[float]:
    """Return the fractions of all sources, which sum to 1.

    The main source comes first, followed by the sources in `mix`.
    """
    return [1 - sum(mix.values()), *mix.values()]


def visits_in_period(shares: Sequence[float]) -> Int[np.ndarray, " S"]:
    """Return the number of visits to each source in a period. They sum to `PERIOD`.

    Args:
        shares: Fraction of each source. The fractions sum to 1.
    """
    ends = np.rint(np.cumsum(shares) * PERIOD).astype(np.int64)
    return np.diff(ends, prepend=0)


class Mixture:
    """Visits to the samples of several sources, in fixed fractions. Each source has separate shuffled epochs.

    Samples are numbered consecutively across all sources. Each period of `PERIOD` visits contains every source with its
    fraction, in random order. Therefore, the visit at any position can be computed directly.

    Args:
        num_samples: Number of samples of each source.
        shares: Fraction of each source. The fractions sum to 1, and none rounds to zero visits (see
            `visits_in_period`).
        seed: Seed of all random choices.
    """

    def __init__(self, num_samples: Sequence[int], shares: Sequence[float], seed: int) -> None:
        self.seed = seed
        self._shuffles = [Shuffle(number, seed) for number in num_samples]
        self._starts = np.concatenate([[0], np.cumsum(num_samples)])
        self._quotas = visits_in_period(shares)
        assert self._quotas.all(), "the recipe was checked: each source has visits"
        self._period = -1
        self._sources = self._turns = np.zeros(0, dtype=np.int64)

    def at(self, position: int) -> SampleRef:
        """Return the visit at a position in the sequence."""
        period, offset = divmod(position, PERIOD)
        if period != self._period:
            self._enter(period)
        source = int(self._sources[offset])
        visit = self._shuffles[source].at(period * int(self._quotas[source]) + int(self._turns[offset]))
        return SampleRef(visit.epoch, int(self._starts[source]) + visit.sample)

    def _enter(self, period: int) -> None:
        self._period = period
        rng = np.random.default_rng((self.seed, period, len(self._quotas)))
        self._sources = rng.permutation(np.repeat(np.arange(len(self._quotas)), self._quotas))
        self._turns = np.zeros(PERIOD, dtype=np.int64)
        for source, quota in enumerate(self._quotas):
            self._turns[self._sources == source] = np.arange(quota)


@dataclass(frozen=True)
class GlobalBatches:
    """Size and number of the global batches of a run. A global batch spans all ranks.

    Attributes:
        size: Number of samples per batch.
        count: Number of batches of the entire run, including the batches before `first`.
        first: Index of the first batch to yield, which is above 0 in a resumed run.
    """

    size: int
    count: int
    first: int = 0


@dataclass(frozen=True)
class RankShare:
    """Part of the work that process `rank` of `world_size` does."""

    rank: int = 0
    world_size: int = 1


SINGLE_PROCESS = RankShare()
"""The share of a single process, which does all work."""


class TrainingOrder:
    """Order of training: visits to samples, divided into global batches.

    A batch can span two epochs, and no sample is dropped. Iterating yields this rank's part of each global batch, from
    `batches.first` on, in micro-batches. The sequence of global batches depends only on `visits` and `batches`.
    Therefore, a run can continue exactly where it stopped, even if the number of ranks, the number of workers or the
    size of micro-batches has changed.

    Args:
        visits: A `Shuffle` of one source, or a `Mixture` of several sources.
        batches: The global batches. Their size must be divisible by the number of ranks.
        share: Part of each batch to yield.
        micro_batch_size: Number of samples per micro-batch; the last micro-batch of a batch may be smaller. If None,
            the entire part is one micro-batch.
    """

    def __init__(
        self,
        visits: SampleSequence,
        batches: GlobalBatches,
        share: RankShare = SINGLE_PROCESS,
        micro_batch_size: int | None = None,
    ) -> None:
        assert batches.size % share.world_size == 0, "see Recipe.require_even_shares"
        assert 0 <= share.rank < share.world_size
        self.visits = visits
        self.batches = batches
        self.rank = share.rank
        self.share_size = batches.size // share.world_size
        self.micro_batch_size = micro_batch_size or self.share_size

    def __len__(self) -> int:
        return max(self.batches.count - self.batches.first, 0) * -(-self.share_size // self.micro_batch_size)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for batch in range(self.batches.first, self.batches.count):
            start = batch * self.batches.size + self.rank * self.share_size
            for position in range(start, start + self.share_size, self.micro_batch_size):
                stop = min(position + self.micro_batch_size, start + self.share_size)
                yield [self.visits.at(i) for i in range(position, stop)]


class EvaluationOrder:
    """Order of evaluation: every sample once, in the order of the source. The last batch may be smaller.

    Batches are assigned to the ranks in turn, and every rank gets the same number of batches. If the number of batches
    is not divisible by the number of ranks, the first batches are repeated at the end.
    """

    def __init__(self, num_samples: int, batch_size: int, share: RankShare = SINGLE_PROCESS) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.share = share

    @property
    def num_batches(self) -> int:
        """Number of distinct batches over all ranks. Batches repeated at the end do not count."""
        return -(-self.num_samples // self.batch_size)

    def __len__(self) -> int:
        return -(-self.num_batches // self.share.world_size)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for turn in range(len(self)):
            start = (turn * self.share.world_size + self.share.rank) % self.num_batches * self.batch_size
            yield [SampleRef(0, index) for index in range(start, min(start + self.batch_size, self.num_samples))]
