"""ROUGE-L (Lin, 2004): based on the longest common subsequence of a caption and its references."""

from collections.abc import Sequence

import numpy as np

BETA = 1.2
"""Weight of recall against precision, as in pycocoevalcap."""
Tokens = Sequence[str]


def rouge_l(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """The score of every caption, N: the F-measure of the best precision and the best recall over its references."""
    return np.array([_score(mine, refs) for mine, refs in zip(hypotheses, references, strict=True)])


def _score(hypothesis: Tokens, references: Sequence[Tokens]) -> float:
    # pycocoevalcap treats an empty caption as one empty token, which matches an empty reference.
    mine = hypothesis or [""]
    common = [(longest_common_subsequence(mine, reference or [""]), len(reference) or 1) for reference in references]
    precision = max(length for length, _ in common) / len(mine)
    recall = max(length / total for length, total in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = row[column]
            row[column] = diagonal + 1 if token == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]
