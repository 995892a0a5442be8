"""The loader, whose worker processes prepare batches ahead, and the log of bad samples that training has replaced."""

import logging
import os
import re
import signal
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import util

import torch
from torch.utils.data import DataLoader

from grr_coca.common.errors import UserError
from grr_coca.data.batch import Batch, Replacement
from grr_coca.data.dataset import PairDataset, collate
from grr_coca.data.order import SampleRef

_log = logging.getLogger(__name__)

_PREFETCHED_BATCHES = 4
"""Number of batches that each worker prepares ahead, enough to bridge a slow read."""

_MAX_SOCKET_PATH = 103
"""Bytes that the path of a socket may have on macOS. Linux allows four more."""

_RAISED = re.compile(r"^grr_coca\.[\w.]+: ", re.MULTILINE)
"""The prefix of an error message of this package in the traceback of a worker."""


class _Loader(DataLoader[Batch]):
    """A `DataLoader` that warns once about cut captions, and raises errors of its workers without a traceback."""

    has_warned = False

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            for batch in super().__iter__():
                if batch.cut_captions and not self.has_warned:
                    self.has_warned = True
                    self._warn_of_cut_captions(batch)
                yield batch
        except UserError as error:
            # Without its traceback, nothing holds the workers any more: they end now. Torch's frames hold their own
            # error, so the traceback would live until garbage is collected, which waits five seconds for each worker.
            raise UserError(_RAISED.split(str(error).rstrip())[-1]) from error.with_traceback(None)

    def _warn_of_cut_captions(self, batch: Batch) -> None:
        context_length = self.dataset.context_length  # type: ignore[attr-defined]
        longest = batch.keys[int(batch.lengths.argmax())]
        _log.warning(
            "%d of %d captions, such as that of %s, are cut to the context of %d tokens (not reported again)",
            batch.cut_captions,
            len(batch),
            longest,
            context_length - 3,
        )


def make_loader(
    dataset: PairDataset, order: Sequence[list[SampleRef]] | object, num_workers: int, *, warns: bool = True
) -> DataLoader[Batch]:
    """Create a loader of batches in a given order, see `grr_coca.data.order`.

    Workers ignore the signals that stop a run, so the parent can still finish and save. `warns`: False: cut captions
    have been reported before.

    Raises:
        UserError: the path of the folder for temporary files is too long for workers.
    """
    if num_workers:
        _require_room_for_sockets()
    loader = _Loader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=order,  # type: ignore[arg-type]
        collate_fn=collate,  # type: ignore[arg-type]
        num_workers=num_workers,
        prefetch_factor=_PREFETCHED_BATCHES if num_workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
    )
    loader.has_warned = not warns
    return loader


def _require_room_for_sockets() -> None:
    # Batches come through a socket in that folder. If its path is too long, none ever comes, and training would wait.
    longest = f"{util.get_temp_dir()}/listener-12345678"
    if os.name == "posix" and len(os.fsencode(longest)) > _MAX_SOCKET_PATH:
        raise UserError(
            f"{tempfile.gettempdir()}: the path of this folder for temporary files is too long for processes that load "
            "data; set TMPDIR to a shorter one, or data.num_workers to 0"
        )


def _leave_signals_to_parent(worker: int) -> None:  # noqa: ARG001 (torch passes it)
    # Signals reach the whole process group. If they ended a worker, the run that is saving would lose its batches.
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS and Windows do not have it, so any SIGTERM ends workers there
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_at_signal_of_parent, daemon=True).start()


def _end_at_signal_of_parent() -> None:
    # At its exit, Python sends SIGTERM to the remaining workers, and waits for them.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class ReplacementLog:
    """Counts replaced samples, and stops a run if too many are bad.

    Args:
        max_share: the largest share of bad samples.
        window: the share is taken over this many last samples. So damage in the middle of a long run is noticed, and a
            bad batch at the start does not stop the run.
        counts: the counts so far, for a resumed run.
    """

    def __init__(self, max_share: float, window: int = 10_000, counts: Mapping[str, int] | None = None) -> None:
        self.counts: Counter[str] = Counter(counts)
        self._max_share = max_share
        self._window = window
        self._recent: deque[tuple[int, tuple[str, ...]]] = deque()
        self._recent_samples = 0
        self._recent_places: Counter[str] = Counter()

    @property
    def share(self) -> float:
        """The share of bad samples in the window."""
        return self._recent_places.total() / max(self._recent_samples, 1)

    def add(self, num_samples: int, replaced: Sequence[Replacement]) -> None:
        """Count a batch of `num_samples` samples.

        Raises:
            UserError: the window is full, and its share of bad samples is too large; the message names the place with
                most of them.
        """
        places = tuple(replacement.place for replacement in replaced)
        self.counts.update(replacement.cause for replacement in replaced)
        self._recent.append((num_samples, places))
        self._recent_samples += num_samples
        self._recent_places.update(places)
        while self._recent_samples - self._recent[0][0] >= self._window:
            num_old, old_places = self._recent.popleft()
            self._recent_samples -= num_old
            self._recent_places.subtract(old_places)
        if self._recent_samples >= self._window and self.share > self._max_share:
            raise UserError(self._too_many())

    def _too_many(self) -> str:
        worst, count = self._recent_places.most_common(1)[0]
        causes = ", ".join(f"{cause}: {number:,}" for cause, number in self.counts.most_common())
        return (
            f"{self.share:.0%} of the last {self._recent_samples:,} samples are bad, more than health: max_bad_share "
            f"{self._max_share:g}; most of them, {count:,}, are in {worst}; in the whole run: {causes}; "
            f"`grr-coca data check` lists them"
        )
