"""The feed-forward part of a block: GEGLU, or the GELU MLP that it replaces.

Shapes: B batch, T tokens, D width.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class GEGLU(nn.Module):
    """`down_proj(gelu(gate_proj(x)) * up_proj(x))`, without biases (Shazeer, arXiv 2002.05202)."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, embed_dim, bias=False)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Apply it to every token separately."""
        return self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x))


class MLP(nn.Module):
    """`down_proj(gelu(up_proj(x)))` with biases: ViT's original feed-forward (arXiv 2010.11929)."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(embed_dim, hidden_dim)
        self.down_proj = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Apply it to every token separately."""
        return self.down_proj(F.gelu(self.up_proj(x)))
