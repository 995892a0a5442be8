"""Conversion for computations that need more precision than bf16 has."""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """The tensor in fp32, or as it is if its precision is that or higher."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
