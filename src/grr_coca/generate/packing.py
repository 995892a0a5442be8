"""Weights laid out for the CPU's matrix kernels.

Decoding multiplies few rows with large matrices. There oneDNN is two to three times as fast on a weight that lies in
the blocks that its kernels read than PyTorch's own product on a plain one (`benchmarks/captioning.py`).

Shapes: D input channels, O output channels.
"""

import copy
import weakref
from typing import TypeGuard, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.generate.absorbed import AbsorbedCrossAttention, absorbable
from grr_coca.layers.attention import CrossAttention

Module = TypeVar("Module", bound=nn.Module)
Fingerprint = list[tuple[int, int, float]]

_kept: "weakref.WeakKeyDictionary[nn.Module, tuple[Fingerprint, nn.Module]]" = weakref.WeakKeyDictionary()


class PackedLinear(nn.Module):
    """An `nn.Linear` that cannot be trained, its weight in oneDNN's own layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B O"]:
        """`x W^T + b`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def packed(model: Module, keep: bool) -> Module:
    """The model to infer with: a copy with packed weights, or the model itself where there is nothing to pack.

    The copy shares all that is not a weight matrix. With `keep`, it serves again until a weight changes.
    """
    linears = [module for module in model.modules() if _packable(module)]
    if not linears:
        return model
    now = [_fingerprint(linear.weight) for linear in linears]
    before, copied = _kept.pop(model, (None, model))
    if before != now:
        copied = _packed_copy(model)
    if keep:
        _kept[model] = now, copied
    return copied  # type: ignore[return-value]


def _packable(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Plain fp32 linears on the CPU; not those that something watches, shards or replaces."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and not (module._forward_hooks or module._forward_pre_hooks)
        and "forward" not in vars(module)
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def _fingerprint(weight: Tensor) -> tuple[int, int, float]:
    """Where a weight lies, how often it was written to, and a sample, for what is written past the counter."""
    version = 0 if weight.is_inference() else weight._version
    return weight.data_ptr(), version, float(weight.detach().flatten()[::4097].sum())


def _packed_copy(module: nn.Module) -> nn.Module:
    if _packable(module):
        return PackedLinear(module)
    copied = copy.copy(module)
    copied._modules = {name: child and _packed_copy(child) for name, child in module._modules.items()}
    if absorbable(module) and _packable(module.kv_proj):
        return AbsorbedCrossAttention(cast(CrossAttention, copied), module.kv_proj.weight)
    return copied
