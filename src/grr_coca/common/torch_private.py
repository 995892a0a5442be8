"""All uses of private PyTorch interfaces.

`tests/core/common/test_torch_private.py` checks the names, signatures and results of these interfaces, and fails if a
PyTorch release changes any of them.

Shapes: D input channels, O output channels.
"""

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

LINEAR_KERNELS = ("_reorder_linear_weight", "_linear_pointwise")
"""Names of oneDNN's linear layers in `torch.ops.mkldnn`."""


def has_blocked_linear() -> bool:
    """Return whether this version of PyTorch supports `block_weight` and the functions that use a blocked weight."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in LINEAR_KERNELS)


def block_weight(weight: Float[Tensor, "O D"]) -> Tensor:
    """Return a linear layer's weight in the blocked layout of oneDNN's kernels, which `blocked_linear` requires."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


def blocked_linear(x: Float[Tensor, "*B D"], blocked: Tensor, bias: Tensor | None) -> Float[Tensor, "*B O"]:
    """Return `x W^T + b`, with W in the blocked layout."""
    return torch.ops.mkldnn._linear_pointwise(x, blocked, bias, "none", [], "")


def blocked_linear_gelu(x: Float[Tensor, "*B D"], blocked: Tensor, bias: Tensor | None) -> Float[Tensor, "*B O"]:
    """Return the GELU of `x W^T + b`. The GELU is computed while the product is in registers."""
    return torch.ops.mkldnn._linear_pointwise(x, blocked, bias, "gelu", [], "none")


def blocked_linear_times(
    x: Float[Tensor, "*B D"], factor: Float[Tensor, "*B O"], blocked: Tensor, bias: Tensor | None
) -> Float[Tensor, "*B O"]:
    """Return `(x W^T + b) * factor`. The factor is applied while the product is in registers."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, factor, blocked, bias, "mul")


def lerp_each(starts: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Interpolate each tensor in `starts` toward the matching tensor in `ends`, in place.

    As few kernels as possible are launched.
    """
    torch._foreach_lerp_(starts, ends, weight)


def scale_each(tensors: list[Tensor], factor: float) -> None:
    """Multiply each tensor by a factor, in place, in as few kernels as possible."""
    torch._foreach_mul_(tensors, factor)


def flash_attention_of_cpu() -> object:
    """Return the operator that computes attention on a CPU. This is needed for counting operations."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def allow_recompiles(limit: int) -> None:
    """Allow each function to be compiled for at least this number of different kinds of inputs in this process."""
    import torch._dynamo  # lazy import, because it takes a second

    torch._dynamo.config.recompile_limit = max(limit, torch._dynamo.config.recompile_limit)


def keep_for_backward(share: float) -> None:
    """Make compiled functions keep only a fraction of their activation memory for the backward pass.

    The other activations are recomputed. With a share of 1, nothing is recomputed. The setting stays in effect, because
    the compiler reads it only when it compiles. The public interface is a context manager around the forward pass,
    which exists only in PyTorch 2.13 and later.
    """
    import torch._functorch.config  # lazy import, because it takes a second

    torch._functorch.config.activation_memory_budget = share


def copy_with_children(module: nn.Module, children: Mapping[str, nn.Module | None]) -> nn.Module:
    """Return a shallow copy of a module with other children and its own hook lists.

    If a hook is later registered with one of the two modules, the other module does not call it.
    """
    copied = copy.copy(module)
    copied.__dict__.pop("forward", None)  # a replaced `forward` would run the original module instead of the copy
    copied._modules = dict(children)
    copied.__dict__ |= {name: copy.copy(hooks) for name, hooks in vars(module).items() if "_hooks" in name}
    return copied


def unwrap_compiled(module: Module) -> Module:
    """Return the original of a module that `torch.compile` returned, or the module itself if it is not compiled."""
    return module._modules.get("_orig_mod", module)  # type: ignore[return-value]


def copy_modules(module: Module) -> Module:
    """Return a copy of a module and of all its submodules, with separate modes and hooks but shared parameters."""
    module = unwrap_compiled(module)
    children = {name: None if child is None else copy_modules(child) for name, child in module._modules.items()}
    return copy_with_children(module, children)  # type: ignore[return-value]


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the module's own dict of children by name, including children that are None."""
    return module._modules


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module itself has forward hooks, which read or change its inputs or outputs."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
