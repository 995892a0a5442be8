"""Copy a model, with fast layers in place of the original layers."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from grr_coca.common.torch_private import (
    children_of,
    copy_with_children,
    has_blocked_linear,
    has_hooks,
    unwrap_compiled,
)
from grr_coca.infer.fast.layers import AbsorbedCrossAttention, FastGEGLU, FastRMSNorm, FastSelfAttention
from grr_coca.infer.fast.linear import FastLinear
from grr_coca.model.attention import CrossAttention, Mix, Rotary, SelfAttention
from grr_coca.model.blocks import GEGLU, RMSNorm

Module = TypeVar("Module", bound=nn.Module)


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
    return _copied(model).eval()  # type: ignore[return-value]


def _copied(module: nn.Module) -> nn.Module:
    module = unwrap_compiled(module)
    if _is_plain(module, nn.Linear):
        return FastLinear(module)  # type: ignore[arg-type]
    copied = copy_with_children(module, {name: child and _copied(child) for name, child in children_of(module).items()})
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
