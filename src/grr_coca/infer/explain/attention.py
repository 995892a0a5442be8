"""Record the attention weights of cross-attention layers, without needing a special mode in the model.

Shapes: B batch, T queries, S context tokens, D width, C context width, H heads, Dh head width.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.model.attention import PLAIN, CrossAttention, Layout


class AttentionRecord(NamedTuple):
    """Attention weights of one forward pass (each row sums to 1), and the values that are averaged with these
    weights."""

    weights: Float[Tensor, "B H T S"]
    values: Float[Tensor, "B S H Dh"]


@contextmanager
def visible_attention(modules: Iterable[CrossAttention]) -> Iterator[dict[nn.Module, AttentionRecord]]:
    """Make modules compute attention weights explicitly, and yield the weights of each module's last pass.

    Normally, modules use fused attention, which never computes the weights explicitly. Here, the outputs are the same
    up to rounding, but they are computed from the recorded weights, so gradients with respect to the weights exist.
    """
    seen: dict[nn.Module, AttentionRecord] = {}

    def recompute(module: nn.Module, inputs: tuple, _output: Tensor) -> Tensor:
        assert isinstance(module, CrossAttention)
        x, context, layout = (*inputs, PLAIN)[:3]
        seen[module] = attention_weights(module, x, context, layout)
        return module.out_proj(layout.unpad(mix_values(seen[module])))

    hooks = [module.register_forward_hook(recompute) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def attention_weights(
    module: CrossAttention, x: Float[Tensor, "R T D"], context: Float[Tensor, "B S C"], layout: Layout = PLAIN
) -> AttentionRecord:
    """Return the attention weights and values of a module for the given inputs.

    The padding of packed sequences also has rows of weights.
    """
    queries = layout.pad(module.q_proj(x).unflatten(-1, (module.num_heads, -1)))  # B T H Dh
    keys, values = module.project(context)  # B S H Dh
    scores = torch.einsum("bthd,bshd->bhts", queries * queries.shape[-1] ** -0.5, keys)
    return AttentionRecord(scores.softmax(dim=-1), values)


def mix_values(attended: AttentionRecord) -> Float[Tensor, "B T D"]:
    """Return the weighted sum of the values, with heads concatenated: the input of the output projection."""
    return torch.einsum("bhts,bshd->bthd", *attended).flatten(2)
