"""The order of the data is a function of (seed, epoch, samples seen)."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grr_coca.data import order as order_module
from grr_coca.data.order import (
    PERIOD,
    SINGLE_PROCESS,
    EvaluationOrder,
    GlobalBatches,
    Mixture,
    RankShare,
    SampleRef,
    Shuffle,
    TrainingOrder,
    visits_in_period,
)

SIZES = st.integers(1, 30)


def flat(order) -> list[SampleRef]:
    return list(itertools.chain.from_iterable(order))


@given(num_samples=SIZES, batch_size=SIZES, seed=st.integers(0, 2**32))
def test_epoch_has_every_sample_once_across_batches(num_samples, batch_size, seed):
    num_batches = -(-3 * num_samples // batch_size)
    refs = flat(TrainingOrder(Shuffle(num_samples, seed), GlobalBatches(batch_size, num_batches)))
    for epoch in range(3):
        visits = refs[epoch * num_samples : (epoch + 1) * num_samples]
        assert {ref.epoch for ref in visits} == {epoch}
        assert sorted(ref.sample for ref in visits) == list(range(num_samples))


@given(batch_size=st.integers(1, 20))
def test_batch_size_does_not_change_the_order(batch_size):
    refs = flat(TrainingOrder(Shuffle(10, seed=4), GlobalBatches(batch_size, 100 // batch_size)))
    assert refs == flat(TrainingOrder(Shuffle(10, seed=4), GlobalBatches(1, 100)))[: len(refs)]


def test_empty_order_raises():
    with pytest.raises(ValueError):
        next(iter(TrainingOrder(Shuffle(0, seed=0), GlobalBatches(4, 1))))


@given(num_samples=SIZES, batch_size=SIZES)
def test_evaluation_sees_every_sample_once_in_the_sources_order(num_samples, batch_size):
    order = EvaluationOrder(num_samples, batch_size)
    assert flat(order) == [SampleRef(0, i) for i in range(num_samples)]
    assert len(order) == len(list(order))
    assert all(len(batch) == batch_size for batch in list(order)[:-1])


# --- Large sources: blocks


def in_small_blocks(function):
    """Run a property with blocks of 4 samples and windows of 3 blocks."""

    def run(*arguments, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(order_module, "PLAIN_SHUFFLE", 0)
            patch.setattr(order_module, "BLOCK", 4)
            patch.setattr(order_module, "_BLOCKS_PER_WINDOW", 3)
            function(*arguments, **options)

    return run


@given(num_samples=st.integers(1, 90), seed=st.integers(0, 2**40))
def test_every_epoch_in_blocks_is_a_different_permutation(num_samples, seed):
    @in_small_blocks
    def check():
        shuffle = Shuffle(num_samples, seed)
        epochs = [[shuffle.at(epoch * num_samples + i) for i in range(num_samples)] for epoch in range(3)]
        for epoch, refs in enumerate(epochs):
            assert {ref.epoch for ref in refs} == {epoch}
            assert sorted(ref.sample for ref in refs) == list(range(num_samples))
        if num_samples > 20:
            assert len({tuple(ref.sample for ref in refs) for refs in epochs}) == 3

    check()


def test_window_shuffles_only_samples_of_its_blocks():
    @in_small_blocks
    def check():
        shuffle = Shuffle(48, seed=5)
        windows = [[shuffle.at(12 * w + i).sample for i in range(12)] for w in range(4)]
        for window in windows:
            blocks = sorted({sample // 4 for sample in window})
            assert len(blocks) == 3
            assert sorted(window) == [4 * block + i for block in blocks for i in range(4)]
        assert all(window != sorted(window) for window in windows)
        assert len({tuple(sorted(window)) for window in windows}) == 4

    check()


def test_small_sources_keep_the_plain_permutation():
    refs = flat(TrainingOrder(Shuffle(100, seed=3), GlobalBatches(10, 20)))
    for epoch in range(2):
        expected = np.random.default_rng((3, epoch)).permutation(100).tolist()
        assert [ref.sample for ref in refs[100 * epoch : 100 * epoch + 100]] == expected


@pytest.mark.parametrize("num_samples", [order_module.PLAIN_SHUFFLE, order_module.PLAIN_SHUFFLE + 1])
def test_full_epoch_is_a_well_mixed_permutation(num_samples):
    shuffle = Shuffle(num_samples, seed=0)
    samples = np.array([shuffle.at(i).sample for i in range(num_samples)])
    assert np.array_equal(np.sort(samples), np.arange(num_samples))
    batch = samples[:4096]
    assert len(np.unique(batch // 128)) > 240, "a batch has samples of nearly all blocks of its window"
    assert np.std(batch) > 0.25 * num_samples


# --- Shares, micro-batches, and going on


@given(
    num_samples=st.integers(1, 60),
    share=st.integers(1, 7),
    world_size=st.integers(1, 4),
    micro=st.one_of(st.none(), st.integers(1, 9)),
    first=st.integers(0, 6),
)
def test_ranks_and_micro_batches_cover_the_global_batch(num_samples, share, world_size, micro, first):
    batch_size = share * world_size
    whole = list(TrainingOrder(Shuffle(num_samples, seed=1), GlobalBatches(batch_size, 8)))
    ranks = [
        TrainingOrder(
            Shuffle(num_samples, seed=1), GlobalBatches(batch_size, 8, first), RankShare(rank, world_size), micro
        )
        for rank in range(world_size)
    ]
    parts = [list(order) for order in ranks]
    assert [len(order) for order in ranks] == [len(part) for part in parts]
    size = micro or share
    per_batch = -(-share // size)
    for number, batch in enumerate(whole[first:]):
        mine = [part[number * per_batch : (number + 1) * per_batch] for part in parts]
        assert [len(piece) for pieces in mine for piece in pieces[:-1]] == [size] * world_size * (per_batch - 1)
        assert [flat(pieces) for pieces in mine] == [batch[r * share : (r + 1) * share] for r in range(world_size)]


@given(num_samples=st.integers(1, 90), batch_size=st.integers(1, 20), first=st.integers(0, 30))
def test_seek_equals_skipping(num_samples, batch_size, first):
    def order(first: int = 0) -> list[list[SampleRef]]:
        return list(TrainingOrder(Shuffle(num_samples, seed=7), GlobalBatches(batch_size, 30, first)))

    def check():
        assert order(first) == order()[first:]

    in_small_blocks(check)()
    check()


# --- mixtures


def test_mixture_has_its_fractions_in_every_period():
    mixture = Mixture([700, 40], [0.9, 0.1], seed=3)
    visits = [mixture.at(position) for position in range(2 * PERIOD)]
    for period in (visits[:PERIOD], visits[PERIOD:]):
        assert sum(visit.sample >= 700 for visit in period) == 100
    small = [visit for visit in visits if visit.sample >= 700]
    assert [visit.epoch for visit in small] == [number // 40 for number in range(200)]
    for epoch in range(5):
        assert {visit.sample for visit in small[40 * epoch : 40 * (epoch + 1)]} == set(range(700, 740))
    large = [visit for visit in visits if visit.sample < 700]
    assert {visit.sample for visit in large[:700]} == set(range(700))
    assert max(position for position, visit in enumerate(visits[:PERIOD]) if visit.sample >= 700) > 800


def test_each_period_shuffles_sources_again():
    mixture = Mixture([4000, 4000], [0.5, 0.5], seed=1)
    sources = [mixture.at(position).sample < 4000 for position in range(2 * PERIOD)]
    assert sources[:PERIOD] != sources[PERIOD:]


def test_mixture_is_a_function_of_the_position():
    mixture = Mixture([700, 40], [0.95, 0.05], seed=1)
    ahead = [mixture.at(position) for position in range(2 * PERIOD)]
    again = Mixture([700, 40], [0.95, 0.05], seed=1)
    for position in (5, 1999, 1000, 0):
        assert again.at(position) == ahead[position]
    other = Mixture([700, 40], [0.95, 0.05], seed=2)
    assert [other.at(position) for position in range(100)] != ahead[:100]


def test_mixture_visits_each_of_its_sources():
    assert visits_in_period([0.9, 0.0006, 0.0994]).tolist() == [900, 1, 99]
    with pytest.raises(AssertionError, match="each source has visits"):
        Mixture([700, 40], [0.9996, 0.0004], seed=0)


def test_ranks_and_a_resumed_run_share_the_order_of_a_mixture():
    def order(first: int = 0, share: RankShare = SINGLE_PROCESS) -> list[list[SampleRef]]:
        return list(TrainingOrder(Mixture([90, 9], [0.8, 0.2], 0), GlobalBatches(8, 6, first), share))

    assert order(first=4) == order()[4:]
    halves = zip(order(share=RankShare(0, 2)), order(share=RankShare(1, 2)), strict=True)
    assert [first + second for first, second in halves] == order()
