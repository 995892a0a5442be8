"""Batches are halved when the memory is short, nothing is lost, and it is reported."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import warnings_of

from grr_coca.common.errors import UserError
from grr_coca.common.threads import Batches

LOGGER = "grr_coca.common.threads"


class OfOnnxRuntime(Exception):  # noqa: N818 (its own is called RuntimeException)
    """Its exceptions derive from `Exception` alone."""


def short(error):
    """Work that fails on more than `bears` items."""

    def make(bears, sizes):
        def work(batch):
            sizes.append(len(batch))
            if len(batch) > bears:
                raise error
            return [10 * item for item in batch]

        return work

    return make


gpu = short(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to …"),
        MemoryError(),
        OfOnnxRuntime("BFCArena::AllocateRaw Failed to allocate memory for requested buffer of size 5120000000"),
    ],
    ids=["CUDA", "MPS", "CPU", "Python", "ONNX Runtime"],
)
def test_batch_is_halved_until_it_fits_with_a_note(error):
    sizes = []
    with warnings_of(LOGGER) as messages:
        results = Batches().run("captioning", list(range(20)), 16, short(error)(5, sizes))
    assert results == [10 * item for item in range(20)]
    assert sizes == [16, 8, 4, 4, 4, 4, 4]
    assert messages == [
        "captioning: out of memory with a batch of 16; continuing with batches of 8",
        "captioning: out of memory with a batch of 8; continuing with batches of 4",
    ]


def test_reduced_size_is_remembered_for_this_work_only():
    batches, sizes = Batches(), []
    with warnings_of(LOGGER) as messages:
        for kind in ("captioning", "captioning", "embedding"):
            batches.run(kind, list(range(6)), 6, gpu(3, sizes))
    assert sizes == [6, 3, 3, 3, 3, 6, 3, 3]
    assert len(messages) == 2


def test_out_of_memory_for_one_item_names_the_work():
    with warnings_of(LOGGER), pytest.raises(UserError, match="embedding images: out of memory with one item"):
        Batches().run("embedding images", [1, 2, 3], 2, gpu(0, []))


def test_other_errors_come_through():
    with pytest.raises(RuntimeError, match="shape"):
        Batches().run("captioning", [1, 2], 2, short(RuntimeError("shape mismatch"))(0, []))


def test_names_an_unreadable_image_with_any_path():
    error = UserError("Out of Memory/1.jpg: broken or truncated image")
    with pytest.raises(UserError, match=r"1\.jpg: broken"):
        Batches().run("captioning", [1, 2], 2, short(error)(0, []))


@given(st.lists(st.integers(), max_size=40), st.integers(1, 50), st.integers(1, 50))
def test_every_item_is_done_once_and_in_order(items, batch_size, bears):
    done, sizes = [], []
    with warnings_of(LOGGER):
        results = Batches().run("work", items, batch_size, gpu(bears, sizes), lambda *counts: done.append(counts))
    assert results == [10 * item for item in items]
    assert all(size <= batch_size for size in sizes)
    assert [count for count, _ in done] == sorted({count for count, _ in done}), "progress goes forward"
    assert not items or done[-1] == (len(items), len(items))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_rejects_batch_sizes_below_one(batch_size):
    with pytest.raises(UserError, match="must be at least 1"):
        Batches().run("work", [1], batch_size, gpu(1, []))


@pytest.mark.ci
def test_failed_attempt_holds_no_memory_when_the_next_begins():
    """An exception that is still being handled would keep the tensors of its frames alive."""
    import gc
    import weakref

    alive = []

    class Tensors:
        pass

    def work(batch):
        gc.collect()
        assert all(reference() is None for reference in alive)
        tensors = Tensors()
        alive.append(weakref.ref(tensors))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return batch

    with warnings_of(LOGGER):
        assert Batches().run("work", [1, 2, 3, 4], 4, work) == [1, 2, 3, 4]
