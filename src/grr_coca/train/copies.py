"""Batches on the device of a run. While the device computes, the next batch is copied to it."""

from collections.abc import Iterable, Iterator, Sequence

import torch

from grr_coca.data.batch import Batch


def copied_ahead(steps: Iterable[Sequence[Batch]], device: torch.device) -> Iterator[Sequence[Batch]]:
    """Yield the micro-batches of each step. A single one is on the device, and the copy of the next step's has begun.

    Several micro-batches stay on the CPU until they are needed one by one: a step is split to take the memory of one.

    An error of `steps` is raised after all steps before it.
    """
    if device.type == "cpu":
        yield from steps
        return
    copies, iterator, ready = _Copies(device), iter(steps), None
    while True:
        try:
            upcoming = next(iterator, None)
        except Exception:
            if ready is not None:
                yield copies.wait_for(*ready)
            raise
        begun = None if upcoming is None else copies.begin(upcoming)
        if ready is not None:
            yield copies.wait_for(*ready)
        if begun is None:
            return
        ready = begun


class _Copies:
    """Copies to a device. On CUDA, they have their own stream, and overlap with computation if the memory is pinned."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, step: Sequence[Batch]) -> tuple[Sequence[Batch], torch.cuda.Event | None]:
        """Begin the copy of a step. Returns its micro-batches and, on CUDA, the event of the end of the copy."""
        if len(step) > 1:
            return step, None
        if self._stream is None:
            return [batch.to(self._device) for batch in step], None
        with torch.cuda.stream(self._stream):
            return [batch.to(self._device) for batch in step], self._stream.record_event()

    def wait_for(self, step: Sequence[Batch], copied: torch.cuda.Event | None) -> Sequence[Batch]:
        """Let the device, but not the caller, wait for a copy."""
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for batch in step:
                batch.record_stream(stream)
        return step
