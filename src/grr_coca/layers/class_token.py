"""A class token (arXiv 2010.11929), as in open_clip's CoCa. Its poolers read the class token beside the patches."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ClassToken(nn.Module):
    """Appends a learned token, to which the learned vector of its position is added."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(embed_dim))
        self.position = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T+1 D"]:
        """The tokens of x, and the class token after them."""
        token = (self.embedding + self.position).to(x.dtype)
        return torch.cat([x, token.expand(len(x), 1, -1)], dim=1)
