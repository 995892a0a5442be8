"""Signals that ask a run to stop. The run saves before it stops."""

import os
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that schedulers and people send: to end a run, to interrupt it, and to warn it of SLURM's time limit."""


class StopSignals:
    """Within this context, a signal is only remembered, and a second one of the same kind acts at once.

    Under torchrun, a third one does: schedulers send SIGTERM and SIGUSR1 to all processes, and torchrun then sends its
    own what it got.
    """

    def __init__(self) -> None:
        self.counts = [0] * len(SIGNALS)
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # the parent process may want it ignored
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        sent = signal.Signals(number)
        self.counts[SIGNALS.index(sent)] += 1
        if self.counts[SIGNALS.index(sent)] == _num_remembered(sent):
            signal.signal(number, self._before[sent])  # type: ignore[arg-type]


def _num_remembered(sent: signal.Signals) -> int:
    return 2 if "TORCHELASTIC_RUN_ID" in os.environ and sent != signal.SIGINT else 1
