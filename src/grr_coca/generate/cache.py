"""What decoding keeps of the tokens that it has seen.

Shapes: B lines of slots, R rows of captions, T new tokens, S slots that are filled, H heads, Dh head width.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from grr_coca.layers.attention import KeyValues


class KeyValueCache:
    """Keys and values of one attention layer, in buffers of a fixed size (2 B H num_slots Dh).

    Captions that search together (the beams of an image) write into one line of slots, side by side, and `mask`
    tells which slots are a caption's own past. So a beam that changes its past changes a row of the mask, and no key
    or value moves. Without a mask, each caption has a line and sees all of it.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.filled = 0
        self.positions: Int[Tensor, " T"] = torch.arange(0)
        self.mask: Bool[Tensor, "#B 1 L S"] | None = None
        self._buffer: Tensor | None = None

    def extend(self, new: KeyValues) -> tuple[KeyValues, Bool[Tensor, "#B 1 L S"] | None]:
        """Fill the next slots; rows of new tokens beyond the lines lie side by side in a line."""
        if self._buffer is None:
            num_lines, _, num_heads, head_dim = new.keys.shape
            self._buffer = new.keys.new_empty(2, num_lines, num_heads, self.num_slots, head_dim)
        num_lines = self._buffer.shape[1]
        start, self.filled = self.filled, self.filled + new.keys[..., 0, 0].numel() // num_lines
        for slots, tensor in zip(self._buffer, new, strict=True):
            slots[:, :, start : self.filled] = tensor.reshape(num_lines, -1, *tensor.shape[2:]).transpose(1, 2)
        keys, values = self._buffer[:, :, :, : self.filled].transpose(2, 3).unbind(0)
        return KeyValues(keys, values), self.mask

    def select(self, lines: Int[Tensor, " B"]) -> None:
        """Keep some lines, in a new order; a line may be taken more than once."""
        if self._buffer is not None:
            old = self._buffer
            self._buffer = old.new_empty(2, len(lines), *old.shape[2:])
            self._buffer[:, :, :, : self.filled] = old[:, :, :, : self.filled].index_select(1, lines)
