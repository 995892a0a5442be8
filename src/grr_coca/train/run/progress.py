"""Progress of a run: its state besides weights and optimizer. With it, a stopped run goes on as if it had never
stopped.

It holds no random state. The order, the augmentation and the dropped patches of a sample are functions of (seed, epoch,
sample), so there is none to keep.
"""

import math
import statistics
from dataclasses import dataclass, field

LOG_INTERVAL = 10
"""One line of the log is the mean of so many steps."""

SPIKE_MEMORY = 100
SPIKE_FACTOR = 6.0
"""A loss is a spike if it is more than `SPIKE_FACTOR` standard deviations above the mean of the `SPIKE_MEMORY` losses
before it."""


@dataclass(kw_only=True)
class Progress:
    """The counters of a run.

    `step`: finished steps. `log_bytes`: bytes of log that they wrote. `skipped`: steps that were skipped. `replaced`:
    bad samples by cause. `window`: metrics of the steps since the last line of the log. `recent`: the newest losses.
    `best` and `best_step`: score and step of the best checkpoint.
    """

    step: int = 0
    log_bytes: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    replaced: dict[str, int] = field(default_factory=dict)
    window: tuple[dict[str, float], ...] = ()
    recent: tuple[float, ...] = ()
    best: float | None = None
    best_step: int | None = None

    def add(self, metrics: dict[str, float]) -> str | None:
        """Count a finished step. Returns what was wrong with it (`not finite` or `spike`), or None."""
        self.step += 1
        if not all(map(math.isfinite, metrics.values())):
            self.skipped += 1
            self.skipped_in_a_row += 1
            return "not finite"
        self.skipped_in_a_row = 0
        is_spike = self._is_spike(metrics["coca"])
        self.window = (*self.window, metrics)
        self.recent = (*self.recent, metrics["coca"])[-SPIKE_MEMORY:]
        return "spike" if is_spike else None

    def take_window(self) -> dict[str, float]:
        """Empty the window. Returns the means since the last line of the log, and the numbers of skipped steps and
        replaced samples if not 0."""
        rows, self.window = self.window, ()
        means = {name: sum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())}
        skipped = {"skipped": float(self.skipped)} if self.skipped else {}
        return {**means, **skipped, **{f"replaced/{cause}": float(n) for cause, n in sorted(self.replaced.items())}}

    def beats_best(self, name: str, value: float, step: int) -> bool:
        """True if a validation score is better than all before it. The score is then kept as the best."""
        lower_is_better = name.endswith(("loss", "perplexity"))
        if not math.isfinite(value) or (
            self.best is not None and (value >= self.best if lower_is_better else value <= self.best)
        ):
            return False
        self.best, self.best_step = value, step
        return True

    def _is_spike(self, loss: float) -> bool:
        if len(self.recent) < SPIKE_MEMORY:
            return False
        return loss > statistics.fmean(self.recent) + SPIKE_FACTOR * statistics.stdev(self.recent)
