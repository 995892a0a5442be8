"""Retrieval metrics, as pure functions of tensors.

Shapes: N queries, M candidates.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def rank_of_first_hit(
    similarity: Float[Tensor, "N M"], relevant: Bool[Tensor, "N M"], tie: float = 0.0
) -> Int[Tensor, " N"]:
    """For each query, the number of wrong candidates that rank before the best right one or tie with it.

    A candidate ties if it is at most `tie` below. A query may have several right answers: equal captions, or several
    captions of one image. A tie counts against the right answer, so a collapsed model, which gives all candidates the
    same similarity, scores zero.
    """
    best = similarity.masked_fill(~relevant, float("-inf")).amax(dim=1, keepdim=True)
    # Not `similarity >= best`, which is false for NaN: the answers of a model that has diverged would rank first.
    return (~(similarity < best - tie) & ~relevant).sum(dim=1)


def chance_recall(num_right: Int[Tensor, " N"], num_candidates: int, k: int) -> float:
    """The expected recall at k of a random order. `num_right`: the number of right answers of each query."""
    wrong = num_candidates - num_right.double()
    missed = torch.ones_like(wrong)
    for drawn in range(min(k, num_candidates)):
        missed *= (wrong - drawn).clamp(min=0) / (num_candidates - drawn)
    return (1 - missed).mean().item()
