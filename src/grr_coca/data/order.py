"""The order of the data: a function of (seed, epoch, samples seen) and of nothing else."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class SampleRef(NamedTuple):
    """One visit of one sample."""

    epoch: int
    sample: int


class TrainingOrder:
    """Endless shuffled epochs, cut into batches. A batch may span two epochs, so no sample is ever dropped."""

    def __init__(
        self, num_samples, batch_size, num_batches, seed, first_batch=0, rank=0, world_size=1, micro_batch_size=None
    ) -> None:
        if num_samples < 1:
            raise ValueError("there is no sample to put in order")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed
        self.first_batch = first_batch
        self.rank = rank
        self.world_size = world_size
        self.share = batch_size // world_size
        self.micro = micro_batch_size or self.share

    def __len__(self) -> int:
        return (self.num_batches - self.first_batch) * -(-self.share // self.micro)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        stream = self._stream()
        for b in range(self.num_batches):
            batch = [next(stream) for _ in range(self.batch_size)]
            if b >= self.first_batch:
                mine = batch[self.rank * self.share : (self.rank + 1) * self.share]
                for i in range(0, self.share, self.micro):
                    yield mine[i : i + self.micro]

    def _stream(self) -> Iterator[SampleRef]:
        epoch = 0
        while True:
            for index in np.random.default_rng((self.seed, epoch)).permutation(self.num_samples):
                yield SampleRef(epoch, int(index))
            epoch += 1


class EvaluationOrder:
    """Every sample once, in the source's order; the last batch may be smaller."""

    def __init__(self, num_samples: int, batch_size: int) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for start in range(0, self.num_samples, self.batch_size):
            yield [SampleRef(0, index) for index in range(start, min(start + self.batch_size, self.num_samples))]
