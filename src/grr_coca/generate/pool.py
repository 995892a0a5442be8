"""The finished captions of one group of beams."""

from collections.abc import Sequence

from grr_coca.generate.hypothesis import Hypothesis


class Pool:
    """The best finished captions, at most `size` of them, ranked by summed score / length ** length_penalty."""

    def __init__(self, size: int, length_penalty: float) -> None:
        self.size = size
        self.length_penalty = length_penalty
        self.hypotheses: list[Hypothesis] = []

    def add(self, token_ids: Sequence[int], log_probs: Sequence[float], summed: float) -> None:
        """Add a finished caption. If there are too many, drop the worst."""
        score = self._normalized(summed, len(token_ids))
        self.hypotheses.append(Hypothesis(tuple(token_ids), tuple(log_probs), score))
        self.hypotheses = sorted(self.hypotheses, key=lambda hypothesis: -hypothesis.score)[: self.size]

    def can_improve(self, summed: float, next_length: int, max_length: int) -> bool:
        """True if a continuation of a caption with this sum of scores may still be among the best.

        Log-probabilities are negative, so no continuation has a greater sum. The bound divides the sum by the most
        favourable length.
        """
        if len(self.hypotheses) < self.size:
            return summed > -float("inf")
        best = max(self._normalized(summed, next_length), self._normalized(summed, max_length))
        return best > self.hypotheses[-1].score

    def _normalized(self, summed: float, length: int) -> float:
        return summed / length**self.length_penalty
