"""Where eight bits of mantissa are not enough."""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """The tensor in fp32 if it is of less precision, else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
