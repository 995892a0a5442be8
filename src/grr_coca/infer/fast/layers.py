"""Fast replacements for layers, for inference on a CPU. Each is equivalent, up to rounding, to the layer that it
replaces.

- `AbsorbedCrossAttention`: cross-attention of few queries, without projecting the context. q · (W_k c) = (W_k^T q) · c
  and sum_s a_s (W_v c_s) = W_v (sum_s a_s c_s), so the projections apply to the few queries instead of the many tokens
  of the context, as in DeepSeek-V2 with its latent vectors (arXiv 2405.04434, section 2.1). Biases: b_k adds the same
  value to all scores of a query, which does not affect the softmax, and b_v is added once, because the weights sum to
  1. If the context's channels are scaled and shifted, this is folded into the projection that follows.
- `FastRMSNorm`: allocates less memory.
- `FastGEGLU`: activation and product of the two branches are computed within the linear layers before them.
- `FastSelfAttention`: uses as few operations as possible for the few tokens of a decoding step. One step of one caption
  takes a hundred matrix products, each in a fraction of a millisecond, so the time between products also matters.

Shapes: R rows of captions, B images, T queries or new tokens of width D, S context tokens of width C, or cache
slots; B lines of slots, L = R / B * T; H heads, Dh = D / H.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from grr_coca.infer.fast.linear import FastLinear
from grr_coca.model.attention import (
    PLAIN,
    CachedLayout,
    CrossAttention,
    KeyValueCache,
    KeyValues,
    Layout,
    PackedLayout,
    SelfAttention,
    scaled_attention,
)
from grr_coca.model.blocks import GEGLU, RMSNorm


class FastRMSNorm(nn.Module):
    """`RMSNorm` that allocates one tensor of the input's size instead of four, because a large allocation requires a
    system call.

    x / sqrt(mean(x²) + eps) = sqrt(D) x / sqrt(|x|² + D eps), and `hypot` computes the last root.
    """

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        dim = len(norm.weight)
        self.weight = norm.weight.detach() * dim**0.5
        self.root = torch.tensor((dim * norm.eps) ** 0.5)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Apply the layer; see `RMSNorm`."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.root)
        return x.div(length).mul_(self.weight)


class FastGEGLU(nn.Module):
    """`GEGLU` whose linear layers also compute the activation and the product, without additional passes over
    memory."""

    def __init__(self, feed_forward: GEGLU) -> None:
        super().__init__()
        self.feed_forward = feed_forward

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Apply the layer; see `GEGLU`."""
        part = self.feed_forward
        assert isinstance(part.gate_proj, FastLinear)
        assert isinstance(part.up_proj, FastLinear)
        return part.down_proj(part.up_proj.times(x, part.gate_proj.gelu(x)))


class FastSelfAttention(nn.Module):
    """`SelfAttention` that rotates queries and keys in place, and writes keys and values into the cache in one
    operation."""

    def __init__(self, attn: SelfAttention) -> None:
        super().__init__()
        self.attn = attn
        self.qk_norm = None if isinstance(attn.qk_norm, nn.Identity) else attn.qk_norm
        self.turns = None if attn.rotary is None else attn.rotary.table[:, None, None]  # T 1 1 C

    def forward(self, x: Float[Tensor, "R T D"], layout: Layout) -> Float[Tensor, "R T D"]:
        """Apply the layer; see `SelfAttention`."""
        if not isinstance(layout, CachedLayout):
            return self.attn(x, layout)
        num_rows, num_tokens, _ = x.shape
        qkv = self.attn.qkv_proj(x).view(num_rows, num_tokens, 3, self.attn.num_heads, -1)
        if self.qk_norm is not None:
            qkv[:, :, :2] = self.qk_norm(qkv[:, :, :2])
        if self.turns is not None:
            pairs = torch.view_as_complex(qkv.view(*qkv.shape[:-1], -1, 2))  # R T 3 H C
            pairs[:, :, :2].mul_(self.turns[layout.positions])
        assert isinstance(layout.cache, KeyValueCache)
        keys, values = layout.cache.write(qkv[:, :, 1:])  # B H S Dh
        q = qkv[:, :, 0].reshape(len(keys), -1, *qkv.shape[3:]).transpose(1, 2)  # B H L Dh
        mixed = scaled_attention(q, keys, values, layout.mask)
        return self.attn.out_proj(mixed.transpose(1, 2).reshape(x.shape))


class AbsorbedCrossAttention(nn.Module):
    """`CrossAttention` that projects its queries instead of its context where this takes fewer multiplications."""

    def __init__(self, attn: CrossAttention) -> None:
        super().__init__()
        self.attn = attn
        weight, bias = (None if part is None else part.detach() for part in attn.projection())
        assert weight is not None
        self.kv_weight = weight.unflatten(0, (2, attn.num_heads, -1))  # 2 H Dh C
        self.value_bias = None if bias is None else bias[len(bias) // 2 :]

    def project(self, context: Float[Tensor, "B S C"]) -> KeyValues:
        """Project the context; see `CrossAttention`."""
        return self.attn.project(context)

    def forward(
        self,
        x: Float[Tensor, "R T D"],
        context: Float[Tensor, "B S C"] | KeyValues,
        layout: Layout = PLAIN,
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "R T D"]:
        """Apply the layer; see `CrossAttention`."""
        if isinstance(context, KeyValues) or isinstance(layout, PackedLayout):
            return self.attn(x, context, layout, mask)
        if not self.pays(x.shape[0] * x.shape[1] // len(context), context.shape[1]):
            return self.attn(x, context, mask=mask)
        key_weight, value_weight = self.kv_weight
        q = self.attn.q_proj(x).unflatten(-1, (self.attn.num_heads, -1))  # R T H Dh
        q = q.flatten(0, 1).transpose(0, 1) @ key_weight  # H R·T C
        # Every head of every query becomes a query of a single wide head: H · L queries per image.
        q = q.transpose(0, 1).reshape(len(context), 1, -1, context.shape[-1])  # B 1 L·H C
        c = context[:, None]
        counting = None if mask is None else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(q, c, c, counting, scale=key_weight.shape[1] ** -0.5)
        mixed = mixed.reshape(-1, len(key_weight), context.shape[-1]).transpose(0, 1) @ value_weight.mT  # H R·T Dh
        mixed = mixed.transpose(0, 1).reshape(x.shape)
        return self.attn.out_proj(mixed if self.value_bias is None else mixed.add_(self.value_bias))

    def pays(self, num_queries: int, num_tokens: int) -> bool:
        """Return whether projecting the queries instead of the context takes fewer multiplications.

        Args:
            num_queries: Number of queries per context.
            num_tokens: Number of tokens per context.
        """
        _, num_heads, head_dim, context_dim = self.kv_weight.shape
        width = num_heads * head_dim
        project_queries = 2 * context_dim * width
        wider_attention = 2 * num_tokens * (num_heads * context_dim - width)
        return num_queries * (project_queries + wider_attention) < num_tokens * 2 * width * context_dim
