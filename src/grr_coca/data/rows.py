"""Rows of token ids as tensors.

Shapes: B rows, T positions.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from grr_coca.data.tokenizer import CLS_SLOT


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B T"], Int[Tensor, " B"]]:
    """Pad rows of ids to one tensor. Also returns their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    token_ids = torch.full((len(rows), int(lengths.max())), CLS_SLOT)
    for padded, row in zip(token_ids, rows, strict=True):
        padded[: len(row)] = torch.tensor(row)
    return token_ids, lengths
