"""The model laid out for inference on a CPU.

Decoding multiplies few rows with large matrices. There oneDNN is two to three times as fast on a weight that lies in
the blocks that its kernels read than PyTorch's own product on a plain one, and it applies what follows a product
while the result is in registers (`benchmarks/captioning.py`). The numbers are the same but for rounding.
"""

import copy
import weakref
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from grr_coca.fast.absorbed import AbsorbedCrossAttention
from grr_coca.fast.fused import FusedGEGLU, FusedRMSNorm, PackedLinear
from grr_coca.fast.self_attention import FusedSelfAttention
from grr_coca.layers.attention import CrossAttention, SelfAttention
from grr_coca.layers.feed_forward import GEGLU
from grr_coca.layers.norm import RMSNorm
from grr_coca.layers.rotary import Rotary

Module = TypeVar("Module", bound=nn.Module)
Fingerprint = list[tuple[int, int, float]]


class Fast(NamedTuple):
    """What stands in for a layer, and of which classes its children must be: with any other, it stays as it is."""

    make: Callable[..., nn.Module]
    children: dict[str, frozenset[type[nn.Module]]]


LINEAR = frozenset({PackedLinear})
FAST = {
    CrossAttention: Fast(AbsorbedCrossAttention, {"q_proj": LINEAR, "kv_proj": LINEAR, "out_proj": LINEAR}),
    GEGLU: Fast(FusedGEGLU, {"gate_proj": LINEAR, "up_proj": LINEAR, "down_proj": LINEAR}),
    RMSNorm: Fast(FusedRMSNorm, {}),
    SelfAttention: Fast(
        FusedSelfAttention,
        {
            "qkv_proj": LINEAR,
            "out_proj": LINEAR,
            "qk_norm": frozenset({nn.Identity, FusedRMSNorm}),
            "rotary": frozenset({Rotary}),
        },
    ),
}

_kept: "weakref.WeakKeyDictionary[nn.Module, tuple[Fingerprint, nn.Module]]" = weakref.WeakKeyDictionary()


def packed(model: Module, keep: bool) -> Module:
    """The model to infer with: a copy with packed weights, or the model itself where there is nothing to pack.

    The copy shares all that is not laid out anew. With `keep`, it serves again until a weight changes.
    """
    linears = [module for module in model.modules() if _is_plain(module, nn.Linear)]
    if not linears or torch.is_autocast_enabled("cpu") or not _has_kernels():
        return model
    now = [_fingerprint(parameter) for parameter in model.parameters()]
    before, copied = _kept.pop(model, (None, model))
    if before != now:
        copied = _packed_copy(model)
    if keep:
        _kept[model] = now, copied
    return copied  # type: ignore[return-value]


def _has_kernels() -> bool:
    # Not part of PyTorch's public interface: a release without them decodes as it is, and slower.
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _packed_copy(module: nn.Module) -> nn.Module:
    if _is_plain(module, nn.Linear):
        return PackedLinear(module)  # type: ignore[arg-type]
    copied = copy.copy(module)
    copied._modules = {name: child and _packed_copy(child) for name, child in module._modules.items()}
    kind = type(module)
    if kind in FAST and _is_plain(module, kind):
        make, expected = FAST[kind]
        if all(type(child) in expected.get(name, ()) and _is_bare(child) for name, child in copied.named_children()):
            return make(copied)
    return copied


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Of this very class, fp32 on the CPU, not sharded, and nothing watches it or stands in for its forward pass."""
    return (
        type(module) is kind
        and all(type(parameter) is nn.Parameter for parameter in module.parameters())
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in module.parameters())
        and _is_bare(module)
    )


def _is_bare(module: nn.Module) -> bool:
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _fingerprint(weight: Tensor) -> tuple[int, int, float]:
    """Where a weight lies, how often it was written to, and a sample, for what is written past the counter."""
    version = 0 if weight.is_inference() else weight._version
    return weight.data_ptr(), version, float(weight.detach().flatten()[::4097].sum())
