"""GEGLU whose activation and product of two branches are computed within the linear layers before them."""

from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.fast.linear import FastLinear
from grr_coca.layers.feed_forward import GEGLU


class FastGEGLU(nn.Module):
    """`GEGLU` with no extra pass over memory for its activation and its product."""

    def __init__(self, feed_forward: GEGLU) -> None:
        super().__init__()
        self.feed_forward = feed_forward

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """As in `GEGLU`."""
        part = self.feed_forward
        assert isinstance(part.gate_proj, FastLinear)
        assert isinstance(part.up_proj, FastLinear)
        return part.down_proj(part.up_proj.times(x, part.gate_proj.gelu(x)))
