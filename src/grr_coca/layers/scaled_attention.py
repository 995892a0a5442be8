"""Scaled dot-product attention, by the kernel that is fastest for the device and dtype of the tensors.

Shapes: B batch, H heads, L queries, S keys, Dh width of a head.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


class KeyValues(NamedTuple):
    """Projected keys and values of one attention layer."""

    keys: Float[Tensor, "B S H Dh"]
    values: Float[Tensor, "B S H Dh"]


Sees = Literal["all", "past"] | Bool[Tensor, "#B 1 #L S"]
"""Which keys a query sees: all of them, those up to its own position (then L = S), or those where a mask is True."""


def scaled_attention(
    q: Float[Tensor, "B H L Dh"], k: Float[Tensor, "B H S Dh"], v: Float[Tensor, "B H S Dh"], sees: Sees
) -> Float[Tensor, "B H L Dh"]:
    """For every query, the mean of the values that it sees, weighted by the softmax of q · k / √Dh."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _as_products(q, k, v, sees)
    mask = sees if isinstance(sees, Tensor) else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and sees == "past")


def _as_products(q: Tensor, k: Tensor, v: Tensor, sees: Sees) -> Tensor:
    """Attention as plain matrix products. Scores are rounded to bf16.

    For CoCa's short sequences in bf16 on a CPU, the forward pass takes about two thirds of the time of PyTorch's fused
    kernel, and the backward pass a tenth to a half (`docs/performance-log.md`). In fp32 both take the same time.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if isinstance(sees, Tensor):
        scores = scores.masked_fill(~sees, -torch.inf)
    elif sees == "past":
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~past, -torch.inf)
    return scores.softmax(-1, dtype=v.dtype) @ v
