"""The k largest of very many numbers.

Shapes: R rows, V numbers in a row, K of them.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

BLOCK = 64


def largest(values: Float[Tensor, "R V"], k: int) -> tuple[Float[Tensor, "R K"], Int[Tensor, "R K"]]:
    """The k largest numbers of each row, in descending order, and their indices.

    The result is that of `torch.topk`, which takes ten times as long for a vocabulary of 50,000 on a CPU. Here the row
    is cut into blocks. The k largest numbers lie in the k blocks with the largest maxima. So only the maxima and the
    numbers of these k blocks are ranked.
    """
    num_blocks = -(-values.shape[1] // BLOCK)
    if 2 * k >= num_blocks:
        top, where = values.topk(min(k, values.shape[1]))
        return top, where
    missing = num_blocks * BLOCK - values.shape[1]
    padded = F.pad(values, (0, missing), value=-torch.inf) if missing else values  # padding copies, even by nothing
    blocks = padded.unflatten(1, (-1, BLOCK))
    best_blocks = blocks.amax(dim=-1).topk(k, sorted=False).indices  # R K
    within = blocks.gather(1, best_blocks[..., None].expand(-1, -1, BLOCK)).flatten(1)  # R, K · BLOCK
    top, where = within.topk(k)
    return top, best_blocks.gather(1, where // BLOCK) * BLOCK + where % BLOCK
