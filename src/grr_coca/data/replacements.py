"""Counts the bad samples that training replaced by others."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence

from grr_coca.batch import Replacement
from grr_coca.errors import UserError


class ReplacementLog:
    """Counts replacements, and stops a run if too many samples are bad.

    The share is taken over the last `window` samples. So damage in the middle of a long run is noticed, and a single
    bad batch at the start does not stop the run. `counts`: the counts so far, of a run that continues.
    """

    def __init__(self, max_share: float, window: int = 10_000, counts: Mapping[str, int] | None = None) -> None:
        self.counts: Counter[str] = Counter(counts)
        self.num_samples = 0
        self._max_share = max_share
        self._window = window
        self._recent: deque[tuple[int, tuple[str, ...]]] = deque()
        self._recent_samples = 0
        self._recent_places: Counter[str] = Counter()

    @property
    def share(self) -> float:
        """Share of bad samples in the window."""
        return self._recent_places.total() / max(self._recent_samples, 1)

    def add(self, num_samples: int, replaced: Sequence[Replacement]) -> None:
        """Count a batch of `num_samples` samples.

        Raises:
            UserError: the window is full, and its share of bad samples is too large. The message names the place with
                most of them.
        """
        places = tuple(replacement.place for replacement in replaced)
        self.counts.update(replacement.cause for replacement in replaced)
        self.num_samples += num_samples
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
            f"{self._max_share:g}; most of them, {count:,}, lie in {worst}; over the run: {causes}; "
            f"`grr-coca data check` lists them"
        )
