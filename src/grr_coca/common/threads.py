"""Threads: their number, their wait policy, their interruption by Ctrl-C, and the execution of work in batches."""

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from grr_coca.common.errors import UserError

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Batch = TypeVar("Batch")
Done = TypeVar("Done")

_WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables that determine how OpenMP threads wait."""


def num_threads() -> int:
    """Return the number of threads to use.

    If `OMP_NUM_THREADS` is set, the result is its value, as in PyTorch. Otherwise, it is the number of cores available
    to this process. The affinity of the process and its container may limit this number.
    """
    setting = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if setting.isdecimal() and int(setting) > 0:
        return int(setting)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _container_limit(Path("/sys/fs/cgroup"))
    return cores if limit is None else min(cores, max(1, round(limit)))


def _container_limit(groups: Path) -> float | None:
    """Return the limit of cores of a container (`docker run --cpus`), or None if the number of cores is not limited.

    The limit is read from control groups v1 or v2, whose folder is `groups`. It need not be an integer.
    """
    try:
        if (groups / "cpu.max").exists():
            quota, period = (groups / "cpu.max").read_text().split()
        else:
            quota, period = ((groups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None  # "max" or -1 means no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None


def was_interrupted(error: BaseException) -> bool:
    """Return whether Ctrl-C caused an error.

    An interrupt inside a lock of `threading` becomes a `RuntimeError` ("release unlocked lock"), or the lock is never
    released.
    """
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


@contextmanager
def thread_pool(
    count: int | None = None, name: str = "", begin: Callable[[], None] | None = None
) -> Iterator["ThreadPoolExecutor"]:
    """Provide a pool of threads within a context.

    At the end of the context, pending tasks are dropped, and running tasks are awaited. After Ctrl-C, running tasks are
    not awaited, because they may take seconds, or wait for a lock that was never released because of the interrupt.

    Args:
        count: Number of threads. If None, the default of `ThreadPoolExecutor` is used.
        name: Prefix of the names of the threads.
        begin: Called in each thread before the thread's first task.
    """
    from concurrent.futures import ThreadPoolExecutor  # lazy import, because most commands do not need it

    pool = ThreadPoolExecutor(count, name, begin)
    waits = True
    try:
        yield pool
    except BaseException as error:
        waits = not was_interrupted(error)
        raise
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)


def set_passive_wait_policy() -> None:
    """Make PyTorch's threads sleep while they wait for each other. Call this before PyTorch is imported.

    By default, waiting threads keep their cores busy. Captioning 200 drawings while another program was running then
    took four times as much processor time, and four times as long. Values that the user has set are kept.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAIT_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def multiply_on_one_thread() -> None:
    """Make NumPy compute matrix products only on the calling thread. Call this before NumPy is imported.

    A search has its own threads, which would otherwise wait for the threads of OpenBLAS. While other programs were
    running, adapting to 4,000 pairs took four times as long with two threads as with one. Only the command line calls
    this function, because it would slow down other matrix products of a program that imports this package. Values that
    the user has set are kept.
    """
    if "numpy" not in sys.modules and "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


# --- Batches of work

OnProgress = Callable[[int, int], None]
"""Callback that is called after each batch with the number of finished items and the total number of items."""

_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "bad_alloc",
)
"""Phrases that identify out-of-memory errors by their messages. The memory allocators of PyTorch for GPUs, of PyTorch
for CPUs, and of ONNX Runtime raise different exceptions."""


_THREAD = threading.local()


def in_worker() -> bool:
    """Return whether this thread is one of several threads that each compute a batch.

    Such a thread should start no further threads.
    """
    return getattr(_THREAD, "is_worker", False)


@runtime_checkable
class BatchEngine(Protocol):
    """The part of an engine that `Batches` needs; see `grr_coca.infer.engine.base.Engine`."""

    @property
    def workers(self) -> int:
        """Number of batches to compute at the same time."""

    def single_threaded(self) -> AbstractContextManager:
        """Return a context in which each new thread computes without further threads."""


class Batches:
    """Executor of work in batches.

    If a batch of `run` does not fit into memory, a warning is logged, and the batch size is halved. The reduced size is
    kept for later calls with the same kind of work.

    If the engine has several workers, as it does for a small model, several batches are computed at the same time, each
    by one thread. The results and their order are the same as if one batch were computed at a time.

    Args:
        engine: Engine that does the work. If None, one batch is computed at a time.
    """

    def __init__(self, engine: BatchEngine | None = None) -> None:
        self._engine = engine
        self._limits: dict[str, int] = {}

    def map(
        self,
        batches: Iterable[Batch],
        work: Callable[[Batch], Done],
        take: Callable[[Done], None],
        *,
        in_threads: bool = True,
    ) -> None:
        """Apply a function to each batch, and pass the results to `take` in order.

        Args:
            batches: Batches, which the calling thread reads as needed. The number of batches read ahead of the results
                is at most one more than the number of workers.
            work: Function that takes a batch. If it raises an error, the results of earlier batches are passed to
                `take`, and later results are dropped.
            take: Function that takes a result. It is called in the calling thread.
            in_threads: Whether to call `work` in threads, if the engine has several workers. Otherwise, it is called in
                the calling thread.
        """
        if self._engine is None or self._engine.workers == 1 or not in_threads or in_worker():
            for batch in batches:
                take(work(batch))
        else:
            with self._engine.single_threaded():
                self._map_in_threads(batches, work, take, self._engine.workers)

    def _map_in_threads(
        self, batches: Iterable[Batch], work: Callable[[Batch], Done], take: Callable[[Done], None], workers: int
    ) -> None:
        waiting: deque[Future[Done]] = deque()
        with thread_pool(workers, "batch", partial(setattr, _THREAD, "is_worker", True)) as pool:
            for batch in batches:
                waiting.append(pool.submit(work, batch))
                if len(waiting) > workers:
                    take(waiting.popleft().result())
            while waiting:
                take(waiting.popleft().result())

    def run(
        self,
        kind: str,
        items: Sequence[Item],
        batch_size: int,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        on_progress: OnProgress | None = None,
        *,
        in_threads: bool = True,
    ) -> list[Result]:
        """Process all items in batches, and return their results in order.

        Args:
            kind: Name of the work in messages, such as "captioning".
            items: Items to process.
            batch_size: Maximum number of items per batch.
            work: Function that returns one result for each item of a batch. Called in threads; see `map`.
            on_progress: Called after each batch.
            in_threads: See `map`. A single batch always runs in the calling thread.

        Raises:
            UserError: If the batch size is below 1, or a single item does not fit into memory.
        """
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        results: list[Result] = []

        def batches() -> Iterable[Sequence[Item]]:
            start = 0
            while start < len(items):
                size = min(batch_size, self._limits.get(kind, batch_size))
                yield items[start : start + size]
                start += size

        def take(batch_results: list[Result]) -> None:
            results.extend(batch_results)
            if on_progress is not None:
                on_progress(len(results), len(items))

        def done(batch: Sequence[Item]) -> list[Result]:
            return self._run_in_parts(kind, batch, work)

        self.map(batches(), done, take, in_threads=in_threads and len(items) > batch_size)
        return results

    def _run_in_parts(
        self, kind: str, batch: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> list[Result]:
        """Return the results of a batch. If memory is insufficient, divide the batch into smaller parts."""
        results: list[Result] = []
        while len(results) < len(batch):
            part = batch[len(results) : len(results) + self._limits.get(kind, len(batch))]
            done = _attempt(work, part)
            if done is None:
                self._halve(kind, len(part))
                continue
            assert len(done) == len(part)
            results += done
        return results

    def _halve(self, kind: str, size: int) -> None:
        # At this point, the exception of the failed attempt has been freed, together with the tensors in its frames.
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            raise UserError(f"{kind}: out of memory with one item; use a machine with more memory, or a smaller model")
        if size // 2 < self._limits.get(kind, size):  # otherwise, another thread has already reduced the size
            self._limits[kind] = size // 2
            log.warning("%s: out of memory with a batch of %d; continuing with batches of %d", kind, size, size // 2)


def _attempt(work: Callable[[Sequence[Item]], Sequence[Result]], batch: Sequence[Item]) -> Sequence[Result] | None:
    """Return the results of the work on a batch, or None if the work did not fit into memory."""
    try:
        return work(batch)
    except UserError:  # the message may contain one of the phrases, for example in a path
        raise
    except MemoryError:
        return None
    except Exception as error:
        if any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            return None
        raise
