"""Fast layers for inference on a CPU, and `fast_copy`, which copies a model and puts these layers into the copy.

Each fast layer is equivalent, up to rounding, to the layer that it replaces.

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

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from grr_coca.common.torch_private import (
    children_of,
    copy_with_children,
    has_blocked_linear,
    has_hooks,
    unwrap_compiled,
)
from grr_coca.infer.fast.linear import FastLinear
from grr_coca.model.attention import (
    PLAIN,
    CachedLayout,
    CrossAttention,
    KeyValueCache,
    KeyValues,
    Layout,
    Mix,
    PackedLayout,
    Rotary,
    SelfAttention,
    scaled_attention,
)
from grr_coca.model.blocks import GEGLU, RMSNorm

Module = TypeVar("Module", bound=nn.Module)


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
        self.rotations = None if attn.rotary is None else attn.rotary.table[:, None, None]  # T 1 1 C

    def forward(self, x: Float[Tensor, "R T D"], layout: Layout) -> Float[Tensor, "R T D"]:
        """Apply the layer; see `SelfAttention`."""
        if not isinstance(layout, CachedLayout):
            return self.attn(x, layout)
        num_rows, num_tokens, _ = x.shape
        qkv = self.attn.qkv_proj(x).view(num_rows, num_tokens, 3, self.attn.num_heads, -1)
        if self.qk_norm is not None:
            qkv[:, :, :2] = self.qk_norm(qkv[:, :, :2])
        if self.rotations is not None:
            pairs = torch.view_as_complex(qkv.view(*qkv.shape[:-1], -1, 2))  # R T 3 H C
            pairs[:, :, :2].mul_(self.rotations[layout.positions])
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
        if not self.is_cheaper(x.shape[0] * x.shape[1] // len(context), context.shape[1]):
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

    def is_cheaper(self, num_queries: int, num_tokens: int) -> bool:
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


# --- The copy of a model


class FastLayer(NamedTuple):
    """Fast replacement for a layer class, and the child classes that it supports.

    Layers with other children are not replaced.
    """

    make: Callable[..., nn.Module]
    children: Mapping[str, frozenset[type[nn.Module]]]


LINEAR: frozenset[type[nn.Module]] = frozenset({FastLinear})
PROJECTIONS = {"q_proj": LINEAR, "kv_proj": LINEAR, "out_proj": LINEAR}
FAST_LAYERS: dict[type[nn.Module], FastLayer] = {
    CrossAttention: FastLayer(AbsorbedCrossAttention, PROJECTIONS),
    GEGLU: FastLayer(FastGEGLU, {"gate_proj": LINEAR, "up_proj": LINEAR, "down_proj": LINEAR}),
    RMSNorm: FastLayer(FastRMSNorm, {}),
    SelfAttention: FastLayer(
        FastSelfAttention,
        {
            "mix": frozenset({Mix}),
            "qkv_proj": LINEAR,
            "out_proj": LINEAR,
            "qk_norm": frozenset({nn.Identity, FastRMSNorm}),
            "rotary": frozenset({Rotary}),
        },
    ),
}
"""Fast replacement for each layer class. Other architectures add their own layer classes."""


def fast_copy(model: Module) -> Module:
    """Return a faster copy of a model, in eval mode. Up to rounding, its results are those of the model in eval mode.

    The copy belongs to the caller. It shares the model's parameters, and also stores some of them in another layout, so
    it is valid only for the current weights. Create a new copy after the weights have changed.

    If the model comes from `torch.compile`, its original module is copied. The model itself is returned if nothing can
    be made faster: on devices other than a CPU, in precisions other than fp32, under autocast, or if the model is
    already such a copy.
    """
    modules = list(model.modules())
    is_copy = any(isinstance(module, FastLinear) for module in modules)
    if is_copy or torch.is_autocast_enabled("cpu") or not has_blocked_linear():
        return model
    if not any(_is_plain(module, nn.Linear) for module in modules):
        return model
    return _copy_module(model).eval()  # type: ignore[return-value]


def _copy_module(module: nn.Module) -> nn.Module:
    module = unwrap_compiled(module)
    if _is_plain(module, nn.Linear):
        return FastLinear(module)  # type: ignore[arg-type]
    copied = copy_with_children(
        module, {name: child and _copy_module(child) for name, child in children_of(module).items()}
    )
    kind = type(module)
    if kind in FAST_LAYERS and _is_plain(module, kind):
        make, supported = FAST_LAYERS[kind]
        if all(type(child) in supported.get(name, ()) and _is_bare(child) for name, child in copied.named_children()):
            return make(copied)
    return copied


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a fast layer can replace the module.

    The module must be of exactly this class, in fp32 on the CPU, not sharded, without hooks, and with the class's own
    forward pass.
    """
    return (
        type(module) is kind
        and all(type(parameter) is nn.Parameter for parameter in module.parameters())
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in module.parameters())
        and _is_bare(module)
    )


def _is_bare(module: nn.Module) -> bool:
    """Return whether the module has no hooks, and no other function has replaced its forward pass."""
    return not has_hooks(module) and "forward" not in vars(module)
