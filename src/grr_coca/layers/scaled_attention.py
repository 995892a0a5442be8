"""Scaled dot-product attention, by the kernel that is fast where the tensors lie.

Shapes: B batch, H heads, L queries, S keys, Dh width of a head.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def attend(
    q: Float[Tensor, "B H L Dh"],
    k: Float[Tensor, "B H S Dh"],
    v: Float[Tensor, "B H S Dh"],
    mask: Bool[Tensor, "#B 1 #L S"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "B H L Dh"]:
    """Every query's mean of the values, weighted by the softmax of its products with the keys over √Dh.

    Args:
        mask: True where a query sees a key; None: everywhere.
        causal: query i sees keys 0 … i; L equals S then, and there is no mask.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _as_products(q, k, v, mask, causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def _as_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Plain products, which at CoCa's short sequences in bf16 on a CPU take about two thirds of the time of PyTorch's
    fused kernel forward, and a tenth to a half backward (`docs/performance.md`). Scores are rounded to bf16. In fp32
    both are level."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1, dtype=v.dtype) @ v
