"""Keys and values of the tokens that a decoder has already seen.

Shapes: B lines of slots, R rows of captions, T new tokens, S filled slots, H heads, Dh head width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.layers.scaled_attention import KeyValues


class KeyValueCache:
    """Keys and values of one attention layer, in buffers of a fixed size (2 B H num_slots Dh).

    A caption that is decoded independently has its own line of slots, one slot for each token. The beams of an image
    share one line: their new tokens take the next slots, side by side, and a mask says which slots are the past of
    each beam. When a beam continues another beam, only a row of the mask changes. No key or value moves.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.filled = 0
        self._buffer: Tensor | None = None

    def extend(self, new: KeyValues) -> KeyValues:
        """Fill the next slots, and return all filled slots. If there are more rows than lines, the neighbouring rows of
        a line fill its slots side by side."""
        keys, values = self.write(torch.stack(new, dim=2))
        return KeyValues(keys.transpose(1, 2), values.transpose(1, 2))

    def write(self, new: Float[Tensor, "R T 2 H Dh"]) -> tuple[Float[Tensor, "B H S Dh"], Float[Tensor, "B H S Dh"]]:
        """`extend` for keys and values in one tensor. The result has the head dimension before the slots."""
        if self._buffer is None:
            num_lines, _, _, num_heads, head_dim = new.shape
            self._buffer = new.new_empty(2, num_lines, num_heads, self.num_slots, head_dim)
        _, num_lines, num_heads, _, head_dim = self._buffer.shape
        rows = new.reshape(num_lines, -1, 2, num_heads, head_dim)  # B L 2 H Dh
        start, self.filled = self.filled, self.filled + rows.shape[1]
        self._buffer[:, :, :, start : self.filled] = rows.permute(2, 0, 3, 1, 4)
        keys, values = self._buffer[:, :, :, : self.filled].unbind(0)
        return keys, values

    def select(self, lines: Int[Tensor, " B"]) -> None:
        """Keep some lines, in a new order. A line may be taken more than once."""
        if self._buffer is not None:
            old = self._buffer
            self._buffer = old.new_empty(2, len(lines), *old.shape[2:])
            self._buffer[:, :, :, : self.filled] = old[:, :, :, : self.filled].index_select(1, lines)
