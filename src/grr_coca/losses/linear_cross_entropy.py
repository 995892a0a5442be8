"""A linear map and the cross-entropy of its result, in one function.

Shapes: M tokens, processed m at a time (a stretch), D width, V vocabulary.

PyTorch's own `linear_cross_entropy` (2.13) either computes all logits at once, or takes six times as long on a CPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from grr_coca.layers.precision import at_least_fp32

LOGITS_AT_ONCE = 2**25
"""Logits that may be in memory at the same time: 128 MB in fp32. With CLIP's vocabulary, a stretch has 679 tokens,
which is long enough for full speed."""


def tokens_at_once(lm_head: Float[Tensor, "V D"]) -> int:
    """Number of tokens of a stretch."""
    return max(1, LOGITS_AT_ONCE // len(lm_head))


class LinearCrossEntropy(torch.autograd.Function):
    """Three sums over tokens: nll + `z_weight` · log² Z, nll, and log² Z. Only the first has a gradient.

    The forward pass takes one stretch of tokens after the other. For each, it computes the gradients too, in the memory
    of the stretch's logits. So the logits of all tokens are never in memory together, and none is computed twice. The
    result can be differentiated only once.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, lm_head: Tensor, labels: Tensor, z_weight: float) -> tuple[Tensor, ...]:
        """Shapes: `states` M D, `lm_head` V D, `labels` M."""
        stretch = tokens_at_once(lm_head)
        by_state, by_head = torch.empty_like(states), torch.zeros_like(lm_head)
        nll = z = at_least_fp32(states.new_zeros(()))
        for x, label, by_x in zip(*(t.split(stretch) for t in (states, labels[:, None], by_state)), strict=True):
            logits = at_least_fp32(F.linear(x, lm_head))  # m V
            log_probs = logits.log_softmax(-1)
            nll_x = -log_probs.gather(1, label)
            log_z = logits.gather(1, label) + nll_x
            nll, z = nll + nll_x.sum(), z + log_z.square().sum()
            if any(ctx.needs_input_grad):
                gradient = log_probs.exp_()  # of nll: the probabilities, minus 1 at the label
                if z_weight:
                    gradient *= 1 + 2 * z_weight * log_z
                gradient.scatter_add_(1, label, torch.full_like(nll_x, -1.0))
                by_x.copy_(gradient.type_as(x) @ lm_head)
                by_head += gradient.type_as(x).T @ x
        ctx.save_for_backward(by_state, by_head)
        ctx.mark_non_differentiable(nll, z)
        return nll + z_weight * z, nll, z

    @staticmethod
    def backward(ctx: Any, by_sum: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Scale the gradients that `forward` has computed.

        Raises:
            RuntimeError: their own derivatives are wanted too. They would be taken for zero.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("the captioning loss can be differentiated only once, so not with create_graph=True")
        by_state, by_head = ctx.saved_tensors
        return by_sum * by_state, by_sum * by_head, None, None
