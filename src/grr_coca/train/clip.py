"""The norm of all gradients, and its bound, wherever the gradients lie."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from grr_coca.train.ranks import Ranks


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, ranks: Ranks) -> Tensor:
    """Scale all gradients so that their common norm is `max_norm` at most; returns the norm before.

    The same number comes out on every rank: sharded gradients are summed over the ranks, replicated ones are not.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    replicated = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norm = _norm(replicated, ranks.device)
    if sharded:
        norm = (norm.square() + ranks.sum(_norm(sharded, ranks.device).square())).sqrt()
    torch._foreach_mul_([*sharded, *replicated], (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _norm(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    return nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=device)
