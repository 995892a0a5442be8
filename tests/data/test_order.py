"""The order of the data is a function of (seed, epoch, samples seen)."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grr_coca.data.order import EvaluationOrder, SampleRef, TrainingOrder

SIZES = st.integers(1, 30)


def flat(order) -> list[SampleRef]:
    return list(itertools.chain.from_iterable(order))


@given(num_samples=SIZES, batch_size=SIZES, seed=st.integers(0, 2**32))
def test_each_epoch_visits_every_sample_once_even_where_a_batch_spans_two(num_samples, batch_size, seed):
    num_batches = -(-3 * num_samples // batch_size)
    refs = flat(TrainingOrder(num_samples, batch_size, num_batches, seed))
    for epoch in range(3):
        visits = refs[epoch * num_samples : (epoch + 1) * num_samples]
        assert {ref.epoch for ref in visits} == {epoch}
        assert sorted(ref.sample for ref in visits) == list(range(num_samples))


@given(num_samples=SIZES, batch_size=SIZES, num_batches=st.integers(0, 9))
def test_there_are_as_many_full_batches_as_asked_for(num_samples, batch_size, num_batches):
    order = TrainingOrder(num_samples, batch_size, num_batches, seed=0)
    assert len(order) == num_batches
    assert [len(batch) for batch in order] == [batch_size] * num_batches


def test_the_order_is_the_same_each_time_it_is_asked_for():
    order = TrainingOrder(10, 3, 9, seed=4)
    assert flat(order) == flat(order) == flat(TrainingOrder(10, 3, 9, seed=4))


@given(batch_size=st.integers(1, 20))
def test_the_batch_size_does_not_change_the_order(batch_size):
    refs = flat(TrainingOrder(10, batch_size, 100 // batch_size, seed=4))
    assert refs == flat(TrainingOrder(10, 1, 100, seed=4))[: len(refs)]


def test_epochs_and_seeds_have_orders_of_their_own():
    refs = flat(TrainingOrder(50, 50, 2, seed=0))
    first, second = ([ref.sample for ref in refs[start : start + 50]] for start in (0, 50))
    other_seed = [ref.sample for ref in flat(TrainingOrder(50, 50, 1, seed=1))]
    assert first != second
    assert first != other_seed
    assert first != list(range(50))


@pytest.mark.timeout(5)
def test_an_order_over_nothing_is_an_error_and_not_an_endless_loop():
    with pytest.raises(ValueError):
        next(iter(TrainingOrder(0, 4, 1, seed=0)))


@given(num_samples=SIZES, batch_size=SIZES)
def test_evaluation_sees_every_sample_once_in_the_sources_order(num_samples, batch_size):
    order = EvaluationOrder(num_samples, batch_size)
    assert flat(order) == [SampleRef(0, i) for i in range(num_samples)]
    assert len(order) == len(list(order))
    assert all(len(batch) == batch_size for batch in list(order)[:-1])
