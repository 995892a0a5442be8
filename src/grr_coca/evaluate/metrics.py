"""Retrieval metrics, pure functions of tensors.

Shapes: N queries, M candidates.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def recall_at_k(similarity: Float[Tensor, "N M"], relevant: Bool[Tensor, "N M"], k: int) -> float:
    """Share of queries with a right answer among their k best candidates.

    A query may have several right answers: equal captions, several captions of one image. A tie counts against
    the right answer, so that a collapsed model, to which all is equal, scores nothing.
    """
    return (_rank_of_first_hit(similarity, relevant) < k).double().mean().item()


def chance_recall_at_k(relevant: Bool[Tensor, "N M"], k: int) -> float:
    """Expected recall at k of a random order of the candidates."""
    num_candidates = relevant.shape[1]
    wrong = num_candidates - relevant.sum(dim=1).double()
    missed = torch.ones_like(wrong)
    for drawn in range(min(k, num_candidates)):
        missed *= (wrong - drawn).clamp(min=0) / (num_candidates - drawn)
    return (1 - missed).mean().item()


def _rank_of_first_hit(similarity: Tensor, relevant: Tensor) -> Tensor:
    best = similarity.masked_fill(~relevant, float("-inf")).amax(dim=1, keepdim=True)
    # Not `similarity >= best`: that is false for NaN, and a model that has diverged would rank first.
    return (~(similarity < best) & ~relevant).sum(dim=1)
