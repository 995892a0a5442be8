"""Signals that ask a run to stop. The run saves before it stops."""

import signal
import threading
import time
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that schedulers and people send: to end a run, to interrupt it, and to warn it of SLURM's time limit."""
ECHO = 5.0
"""Seconds. Schedulers send SIGTERM and SIGUSR1 to all processes, and torchrun then sends its own what it got."""


class StopSignals:
    """Within this context, a signal is only remembered. A second signal of the same kind acts at once, unless it is the
    echo of the first by torchrun."""

    def __init__(self) -> None:
        self.counts = [0] * len(SIGNALS)
        self._before: dict[signal.Signals, object] = {}
        self._heard: dict[signal.Signals, float] = {}

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
        sent, now = signal.Signals(number), time.monotonic()
        if sent not in self._heard:
            self._heard[sent] = now
            self.counts[SIGNALS.index(sent)] = 1
        elif sent == signal.SIGINT or now - self._heard[sent] > ECHO:
            signal.signal(sent, self._before[sent])  # type: ignore[arg-type]
            signal.raise_signal(sent)
