"""The loader: batches that are made ahead by other processes, which leave signals and reports to their parent."""

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader

from grr_coca.batch import Batch
from grr_coca.data.dataset import PairDataset, collate
from grr_coca.data.order import SampleRef
from grr_coca.errors import UserError

log = logging.getLogger(__name__)

PREFETCHED_BATCHES = 4
"""Batches that each worker prepares ahead, which is enough to bridge a slow read."""

RAISED = re.compile(r"^grr_coca\.[\w.]+: ", re.MULTILINE)
"""The prefix of our own error message within the traceback of a worker."""


class _Loader(DataLoader[Batch]):
    """A loader that reports for its workers: it warns once about cut captions, and raises errors without traceback."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        has_warned = False
        try:
            for batch in super().__iter__():
                if batch.cut_captions and not has_warned:
                    has_warned = True
                    self._warn_of_cut_captions(batch)
                yield batch
        except UserError as error:
            raise UserError(RAISED.split(str(error).rstrip())[-1]) from error

    def _warn_of_cut_captions(self, batch: Batch) -> None:
        context_length = self.dataset.context_length  # type: ignore[attr-defined]
        longest = batch.keys[int(batch.lengths.argmax())]
        log.warning(
            "%d of %d captions, such as that of %s, are cut to the context of %d tokens (not reported again)",
            batch.cut_captions,
            len(batch),
            longest,
            context_length - 3,
        )


def make_loader(dataset: PairDataset, order: Sequence[list[SampleRef]] | object, num_workers: int) -> DataLoader[Batch]:
    """A loader of batches in a given order, see `grr_coca.data.order`. Its workers ignore signals that stop a run."""
    return _Loader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=order,  # type: ignore[arg-type]
        collate_fn=collate,  # type: ignore[arg-type]
        num_workers=num_workers,
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
    )


def _leave_signals_to_parent(worker: int) -> None:  # noqa: ARG001 (torch passes it)
    # Signals reach the whole process group. If a worker died of one, the run that is saving would lose its batches.
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS does not have it: any SIGTERM ends workers there
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says_so, daemon=True).start()


def _end_when_parent_says_so() -> None:
    # At its exit, Python sends SIGTERM to the workers that are left, and waits for them.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
