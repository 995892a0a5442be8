"""The attentional pooler: learned queries attend to a sequence of any length."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.layers.attention import CrossAttention


class AttentionalPooler(nn.Module):
    """One multi-head attention whose queries are learned (CoCa, arXiv 2205.01917, section 3.2).

    Shapes: B batch, S context tokens of width C, Q queries of width D. The output is B Q D for every Q, 1 included.
    """

    def __init__(self, num_queries: int, embed_dim: int, attn: CrossAttention, norm: nn.Module) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(num_queries, embed_dim))
        self.attn = attn
        self.norm = norm

    def forward(self, context: Float[Tensor, "B S C"]) -> Float[Tensor, "B Q D"]:
        """Pool the context into Q normalized tokens."""
        queries = self.queries.expand(len(context), -1, -1)
        return self.norm(self.attn(queries, context))
