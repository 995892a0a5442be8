"""Everything that this package uses of PyTorch beyond its public interface, in one place.

`tests/test_torch_private.py` compares names, signatures and results with what is expected here, so that a release of
PyTorch that changes them is noticed by one test that says so.

Shapes: D input channels, O output channels.
"""

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

LINEAR_KERNELS = ("_reorder_linear_weight", "_linear_pointwise")
"""oneDNN's linear layers in `torch.ops.mkldnn`."""


def has_blocked_linear() -> bool:
    """Whether `block_weight` and the products with its result are there."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in LINEAR_KERNELS)


def block_weight(weight: Float[Tensor, "O D"]) -> Tensor:
    """The weight of a linear layer in the blocks that oneDNN's kernels read, for the functions below."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


def blocked_linear(x: Float[Tensor, "*B D"], blocked: Tensor, bias: Tensor | None) -> Float[Tensor, "*B O"]:
    """`x W^T + b`."""
    return torch.ops.mkldnn._linear_pointwise(x, blocked, bias, "none", [], "")


def blocked_linear_gelu(x: Float[Tensor, "*B D"], blocked: Tensor, bias: Tensor | None) -> Float[Tensor, "*B O"]:
    """GELU of `x W^T + b`, while the result is in registers."""
    return torch.ops.mkldnn._linear_pointwise(x, blocked, bias, "gelu", [], "none")


def blocked_linear_times(
    x: Float[Tensor, "*B D"], factor: Float[Tensor, "*B O"], blocked: Tensor, bias: Tensor | None
) -> Float[Tensor, "*B O"]:
    """`(x W^T + b) * factor`, while the result is in registers."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, factor, blocked, bias, "mul")


def lerp_each(starts: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Move every tensor by this share of the way to another, in place, in as few kernels as there can be."""
    torch._foreach_lerp_(starts, ends, weight)


def flash_attention_of_cpu() -> object:
    """The operator that attention on a CPU is, for those who count operations."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def allow_recompiles(limit: int) -> None:
    """Let the compiler compile a function for so many kinds of inputs, if it allows fewer."""
    import torch._dynamo  # late: it takes a second

    torch._dynamo.config.recompile_limit = max(limit, torch._dynamo.config.recompile_limit)


def keep_for_backward(share: float) -> None:
    """Let compiled functions keep this share of what their backward pass reads, and compute the rest again.

    The compiler reads it when it compiles, so it stays set. The public way, a context around the forward pass, came
    with PyTorch 2.13.
    """
    import torch._functorch.config  # late: it takes a second

    torch._functorch.config.activation_memory_budget = share


def copy_with_children(module: nn.Module, children: Mapping[str, nn.Module | None]) -> nn.Module:
    """A module that shares everything with another but its children."""
    copied = copy.copy(module)
    copied._modules = dict(children)
    return copied


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """All children by name, those that are None too."""
    return module._modules


def is_watched(module: nn.Module) -> bool:
    """Whether hooks see, or change, what goes into a module or comes out of it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
