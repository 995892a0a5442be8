"""The attentional pooler: learned queries attend to a sequence of any length.

`cascade` and `parallel` are two ways to arrange two of them.

Shapes: B batch, S context tokens of width C, P patch tokens, Q queries of width D.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.model.attention import CrossAttention


class AttentionalPooler(nn.Module):
    """One multi-head attention whose queries are learned (CoCa, arXiv 2205.01917, section 3.2).

    The output is B Q D for every number of queries, 1 included.
    """

    def __init__(self, num_queries: int, embed_dim: int, attn: CrossAttention, norm: nn.Module) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(num_queries, embed_dim))
        self.attn = attn
        self.norm = norm

    def forward(self, context: Float[Tensor, "B S C"]) -> Float[Tensor, "B Q D"]:
        """Pool the context into Q normalized tokens."""
        queries = self.attending_queries().expand(context.shape[0], -1, -1)  # B Q D
        return self.norm(self.attn(queries, context))

    def attending_queries(self) -> Float[Tensor, "Q D"]:
        """The queries that attend to the context. A subclass can normalize them."""
        return self.queries


Pooler = Callable[[Tensor], Tensor]
"""A function from the tokens of an image to the tokens of each query."""


class PoolerOutput(NamedTuple):
    """Output of both poolers. `tokens`: the image tokens that captions attend to. `contrastive`: the token that becomes
    the image embedding."""

    tokens: Float[Tensor, "B Q D"]
    contrastive: Float[Tensor, "B 1 D"]


Arrange = Callable[[Pooler, Pooler, Tensor], PoolerOutput]
"""A function that applies a captioning pooler and a contrastive pooler to the patches."""


def cascade(captioning_pooler: Pooler, contrastive_pooler: Pooler, patches: Float[Tensor, "B P C"]) -> PoolerOutput:
    """The contrastive pooler reads the captioning pooler's tokens (CoCa)."""
    tokens = captioning_pooler(patches)
    return PoolerOutput(tokens, contrastive_pooler(tokens))


def parallel(captioning_pooler: Pooler, contrastive_pooler: Pooler, patches: Float[Tensor, "B P C"]) -> PoolerOutput:
    """Both poolers read the patches."""
    return PoolerOutput(captioning_pooler(patches), contrastive_pooler(patches))
