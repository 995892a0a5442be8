"""Batches: halved when memory is short, and several at the same time for a small model."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from processes import running
from support import warnings_of

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca.common.threads import Batches, _container_limit, in_worker, num_threads
from grr_coca.infer import ImageTextModel
from grr_coca.infer.engine.torch import TorchEngine

DRAWINGS = sorted((Path(__file__).parents[3] / "docs" / "drawings").glob("*.webp"))


class Engine:
    """Says how many workers it has, and notes when its threads are limited."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.entered = 0

    @contextmanager
    def single_threaded(self):
        self.entered += 1
        yield


def batches_of(workers: int) -> Batches:
    return Batches(Engine(workers))  # type: ignore[arg-type]


@pytest.fixture
def images(tmp_path):
    """Twelve images, of which two are equal."""
    kept = [Image.open(path).convert("RGB") for path in DRAWINGS[:6]]
    for number, image in enumerate([*kept, *(image.rotate(90) for image in kept[:5]), kept[0]]):
        image.save(tmp_path / f"{number:02}.png")
    return sorted(tmp_path.glob("*.png"))


# --- The threads


def test_results_keep_order_if_later_batches_finish_first():
    taken = []
    batches_of(3).map(range(7), lambda number: time.sleep(0.02 * (number % 3 == 0)) or number, taken.append)
    assert taken == list(range(7))


def test_batches_run_in_threads_and_return_in_the_caller():
    meeting = threading.Barrier(2, timeout=10)  # broken if a batch is done alone
    main_thread, takers = threading.get_ident(), []

    def work(_):
        meeting.wait()
        assert in_worker()
        return threading.get_ident()

    batches_of(2).map(range(4), work, lambda worker: takers.append((worker != main_thread, threading.get_ident())))
    assert takers == [(True, main_thread)] * 4
    assert not in_worker()


@pytest.mark.parametrize("workers", [2, 5])
def test_few_batches_are_in_memory_at_a_time(workers):
    alive, most = 0, 0
    lock = threading.Lock()

    def source():
        nonlocal alive, most
        for number in range(40):
            with lock:
                alive += 1
                most = max(most, alive)
            yield number

    def take(_):
        nonlocal alive
        with lock:
            alive -= 1

    batches_of(workers).map(source(), lambda number: number, take)
    assert most == workers + 1


def test_error_ends_all_after_the_results_of_earlier_batches():
    begun, taken = [], []

    def work(number):
        begun.append(number)
        if number == 3:
            raise UserError("image 4: broken")
        return number

    with pytest.raises(UserError, match="image 4"):
        batches_of(2).map(range(100), work, taken.append)
    assert taken == [0, 1, 2]
    assert max(begun) <= 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batch")]


def test_errors_of_source_or_consumer_end_all_threads():
    def source():
        yield from range(3)
        raise UserError("no more")

    def refuse(_):
        raise OSError("no space")

    with pytest.raises(UserError, match="no more"):
        batches_of(2).map(source(), lambda number: number, lambda _: None)
    with pytest.raises(OSError, match="no space"):
        batches_of(2).map(range(9), lambda number: number, refuse)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batch")]


def test_work_within_work_takes_no_more_threads():
    batches = batches_of(2)
    seen = set()

    def work(items):
        inner = batches.run("inner", items, 1, lambda batch: [*batch, seen.add(threading.current_thread().name)][:1])
        return [sum(inner)]

    results = []
    batches.map([[1, 2], [3, 4], [5, 6]], work, results.append)
    assert results == [[3], [7], [11]]
    assert len(seen) <= 2


def test_single_batch_stays_in_the_calling_thread():
    batches = batches_of(2)
    found = batches.run("work", [1, 2, 3], 3, lambda batch: [threading.current_thread().name] * len(batch))
    assert found == [threading.current_thread().name] * 3
    assert batches._engine.entered == 0


def test_batch_is_halved_once_for_all_threads():
    sizes = []

    def work(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            time.sleep(0.05)  # the other worker fails with its own batch of this size
            raise MemoryError
        return [10 * item for item in batch]

    with warnings_of("grr_coca.common.threads") as messages:
        results = batches_of(2).run("captioning", list(range(16)), 4, work)
    assert results == [10 * item for item in range(16)]
    assert sizes.count(4) <= 3
    assert messages == ["captioning: out of memory with a batch of 4; continuing with batches of 2"]


# --- Models


def loaded(monkeypatch, workers: int) -> ImageTextModel:
    monkeypatch.setenv("OMP_NUM_THREADS", str(workers))
    model = grr_coca.load("icons", engine="onnx")
    assert model.engine.workers == workers
    return model


OPTIONS = {"greedy": {}, "sampled": {"temperature": 1.0, "seed": 3, "num_captions": 2}, "beams": {"num_beams": 3}}


@pytest.mark.ci
def test_captions_are_the_same_with_one_worker_and_with_two(monkeypatch, images):
    models = [loaded(monkeypatch, workers) for workers in (1, 2)]
    for options in OPTIONS.values():
        alone, together = (model.describe(images, batch_size=2, **options) for model in models)
        assert [one.captions for one in together] == [one.captions for one in alone]
        assert [one.caption_confidences for one in together] == [one.caption_confidences for one in alone]
        assert all(np.array_equal(one.embedding, two.embedding) for one, two in zip(alone, together, strict=True))


def test_shared_image_is_opened_by_one_thread(monkeypatch):
    model = loaded(monkeypatch, 2)
    image = Image.open(DRAWINGS[0])
    threads = set()
    run = model.engine.run
    monkeypatch.setattr(model.engine, "run", lambda *a: threads.add(threading.current_thread().name) or run(*a))
    assert len(set(model.caption([image] * 6, batch_size=2))) == 1
    assert threads == {threading.current_thread().name}


@pytest.mark.ci
def test_torch_uses_one_thread_per_batch_and_is_restored(monkeypatch, images):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    try:
        model = grr_coca.load("icons", "cpu", engine="torch")
        assert model.engine.workers == 2
        found, encode = [], model.engine.encode_images

        def noted(pixels):
            found.append((in_worker(), torch.get_num_threads()))
            return encode(pixels)

        monkeypatch.setattr(model.engine, "encode_images", noted)
        together = model.caption(images, batch_size=2)
        assert found == [(True, 1)] * 6
        assert torch.get_num_threads() == 2
        with torch.autocast("cpu", enabled=True):
            assert model.engine.workers == 1
        torch.set_num_threads(1)
        assert model.caption(images, batch_size=2) == together
    finally:
        torch.set_num_threads(1)


def test_wide_model_of_torch_does_one_batch_at_a_time(monkeypatch):
    monkeypatch.setattr("grr_coca.infer.engine.torch.SMALL_MODEL", 1000)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    checkpoint = grr_coca.load("icons", "cpu", engine="torch").checkpoint
    assert TorchEngine(checkpoint.model, checkpoint.preprocess).workers == 1


# --- Commands


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, RuntimeError])
def test_interrupt_within_a_lock_does_not_wait_for_batches(interrupt):
    """Python's own locks can turn an interrupt into another error, and stay closed."""
    closed = threading.Event()

    def source():
        yield from range(2)
        try:
            raise KeyboardInterrupt
        finally:
            if interrupt is RuntimeError:
                threading.Lock().release()

    try:
        with pytest.raises(interrupt):
            batches_of(2).map(source(), lambda _: closed.wait(), lambda _: None)
    finally:
        closed.set()


SLOW = """
import os, runpy, time
from grr_coca.infer.engine.onnx import OnnxEngine

encode = OnnxEngine.encode_images

def slow(self, pixels):
    os.write(1, b"begun\\n")
    time.sleep(600)
    return encode(self, pixels)

OnnxEngine.encode_images = slow
runpy.run_module("grr_coca", run_name="__main__")
"""


@pytest.mark.ci
def test_interrupt_does_not_wait_for_batches(images):
    command = [sys.executable, "-c", SLOW, "caption", *map(str, images), "--batch-size", "2", "--engine", "onnx"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with running(command, **pipes, env={**os.environ, "OMP_NUM_THREADS": "2"}) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors.splitlines()[-1]) == (130, "interrupted")


# --- The number of threads


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
    ids=["two", "two-unlimited", "one", "one-unlimited", "damaged", "no groups"],
)
def test_limit_of_a_container_is_read(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _container_limit(tmp_path) == limit


@pytest.mark.parametrize(("limit", "threads"), [(None, 6), (2.4, 2), (0.3, 1), (64.0, 6)])
def test_threads_are_as_many_as_this_process_may_use(monkeypatch, limit, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6))
    monkeypatch.setattr("grr_coca.common.threads._container_limit", lambda _: limit)
    assert num_threads() == threads


# --- Out of memory

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
