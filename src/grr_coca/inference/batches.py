"""Run work in batches that fit into memory."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from grr_coca.errors import UserError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
OnProgress = Callable[[int, int], None]
"""Called after each batch with the number of items done and the number of all items."""

_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "bad_alloc",
)
"""Parts of the messages of allocators: those of PyTorch for GPUs and CPUs, and of ONNX Runtime. They have no exception
in common."""


class Batches:
    """Runs work in batches. If a batch does not fit into memory, a warning is given, and the batch size is halved.

    The reduced size is kept for later calls with the same kind of work.
    """

    def __init__(self) -> None:
        self._limits: dict[str, int] = {}

    def run(
        self,
        kind: str,
        items: Sequence[Item],
        batch_size: int,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        on_progress: OnProgress | None = None,
    ) -> list[Result]:
        """Return the results of all items, in order.

        Args:
            kind: name of the work in messages, such as "captioning".
            items: the items to work on.
            batch_size: maximum number of items per batch.
            work: returns one result for each item of a batch.
            on_progress: called after each batch.

        Raises:
            UserError: the batch size is below 1, or a single item does not fit into memory.
        """
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: give 1 or more")
        results: list[Result] = []
        while len(results) < len(items):
            size = min(batch_size, self._limits.get(kind, batch_size))
            batch = items[len(results) : len(results) + size]
            done = _attempt(work, batch)
            if done is None:
                self._halve(kind, len(batch))
                continue
            assert len(done) == len(batch)
            results += done
            if on_progress is not None:
                on_progress(len(results), len(items))
        return results

    def _halve(self, kind: str, size: int) -> None:
        # The exception of the failed attempt is gone now, and with it the tensors that its frames held.
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            raise UserError(f"{kind}: out of memory with one item; use a machine with more memory, or a smaller model")
        self._limits[kind] = size // 2
        log.warning("%s: out of memory with a batch of %d; continuing with batches of %d", kind, size, size // 2)


def _attempt(work: Callable[[Sequence[Item]], Sequence[Result]], batch: Sequence[Item]) -> Sequence[Result] | None:
    """The results of the work, or None if it did not fit into memory."""
    try:
        return work(batch)
    except MemoryError:
        return None
    except Exception as error:
        if any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            return None
        raise
