"""Copies to the device of a run, one step ahead. Of another device than the CPU, torch's "meta" has the form alone."""

from collections.abc import Iterator

import pytest
import torch

from grr_coca.data.batch import Batch, copy_ahead

META = torch.device("meta")


@pytest.fixture
def batches(tiny_config, make_batch) -> list[Batch]:
    return [make_batch(tiny_config(), seed=seed) for seed in range(4)]


def read(steps: list[list[Batch]], log: list[int]) -> Iterator[list[Batch]]:
    """The steps; `log` gets the number of each that is read."""
    for number, step in enumerate(steps):
        log.append(number)
        yield step


def test_next_batch_is_read_while_one_is_on_the_device(batches):
    log: list[int] = []
    steps = [[batch] for batch in batches]
    for number, ((copied,), (batch,)) in enumerate(zip(copy_ahead(read(steps, log), META), steps, strict=True)):
        assert copied.images.device == copied.next_tokens.device == copied.token_ids.device == META
        assert copied.images.shape == batch.images.shape
        assert copied.lengths is batch.lengths, "its numbers are read on the CPU"
        assert log == list(range(min(number + 2, len(steps))))


def test_micro_batches_stay_on_the_cpu(batches):
    steps = [batches[:2], batches[2:]]
    assert list(copy_ahead(steps, META)) == steps


def test_on_the_cpu_nothing_is_read_ahead(batches):
    log: list[int] = []
    steps = [[batch] for batch in batches]
    for number, (batch,) in enumerate(copy_ahead(read(steps, log), torch.device("cpu"))):
        assert batch is batches[number]
        assert log == list(range(number + 1))


@pytest.mark.parametrize("device", [META, torch.device("cpu")], ids=str)
def test_error_comes_after_the_steps_before_it(batches, device):
    def broken() -> Iterator[list[Batch]]:
        yield from ([batch] for batch in batches[:3])
        raise OSError("the disk is away")

    copied = copy_ahead(broken(), device)
    assert [len(next(copied)) for _ in range(3)] == [1, 1, 1]
    with pytest.raises(OSError, match="the disk is away"):
        next(copied)
