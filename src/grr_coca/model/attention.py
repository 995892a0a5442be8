"""Multi-head attention of a sequence to itself, and to a context: scores, layouts of tokens, positions, layers.

Token-wise layers work on tokens in any order. Only attention needs separate sequences. Every layout prepares tokens for
attention (`attention_inputs` for self-attention, `pad` for the queries of cross-attention) and restores the original
form (`unpad`).

| layout | arrangement of tokens | used by |
|---|---|---|
| `PlainLayout` | B sequences of the same length | image encoder, poolers |
| `PackedLayout` | one row, without padding | text decoders in training |
| `CachedLayout` | the next tokens of R captions | decoding |

The projections have no biases unless `bias` is True, so that compared models differ only in the parts that their names
mention.

Shapes: B sequences (or lines of slots in a cache), R rows of captions, T tokens of the longest sequence (or new
tokens), N tokens in total, S tokens that queries attend to (or filled slots), L queries, D width, C context width, H
heads of width Dh = D / H, * any dimensions of a token. In `Rotary`: N = 2, queries and keys, and C = Dh / 2 complex
channels.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex64, Float, Int, Shaped
from torch import Tensor, nn


class KeyValues(NamedTuple):
    """Projected keys and values of one attention layer."""

    keys: Float[Tensor, "B S H Dh"]
    values: Float[Tensor, "B S H Dh"]


Mask = Literal["all", "causal"] | Bool[Tensor, "#B 1 #L S"]
"""Keys that a query attends to: all keys, the keys up to the query's own position (then L = S), or the keys where a
tensor is True.
"""


TokenMask = Bool[Tensor, "B S"] | None
"""Mask of the tokens of each context. It is False for padding, to which no query attends. None if no token is padding.
"""


def to_attention_mask(mask: TokenMask) -> Mask:
    """Convert a mask of context tokens to a mask of the keys that every query attends to."""
    return "all" if mask is None else mask[:, None, None]


def scaled_attention(
    q: Float[Tensor, "B H L Dh"], k: Float[Tensor, "B H S Dh"], v: Float[Tensor, "B H S Dh"], mask: Mask
) -> Float[Tensor, "B H L Dh"]:
    """Return, for every query, the mean of the values that the query attends to, weighted by the softmax of q · k /
    √Dh."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _attention_by_products(q, k, v, mask)
    attn_mask = mask if isinstance(mask, Tensor) else None
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=attn_mask, is_causal=attn_mask is None and mask == "causal"
    )


def _attention_by_products(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Compute attention as plain matrix products, with scores in the precision of the queries.

    For CoCa's short sequences in bf16 on a CPU, the forward pass takes about two thirds of the time of PyTorch's fused
    kernel, and the backward pass a tenth to a half (`benchmarks/LOG.md`). In fp32, both take the same time.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if isinstance(mask, Tensor):
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask == "causal":
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~past, -torch.inf)
    return scores.softmax(-1, dtype=v.dtype) @ v


class Cache(Protocol):
    """Keys and values of the earlier tokens of captions in one attention layer."""

    def extend(self, new: KeyValues) -> KeyValues:
        """Append keys and values, and return all keys and values so far."""


class KeyValueCache:
    """Keys and values of one attention layer, in a buffer of fixed size, with the shape 2 B H num_slots Dh.

    A caption that is decoded independently has its own line of slots, one slot per token. The beams of an image share
    one line: their new tokens take the next slots, side by side, and a mask selects the slots of each beam's past. When
    a beam continues another beam, only a row of the mask changes, and no key or value moves.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.filled = 0
        self._buffer: Tensor | None = None

    def extend(self, new: KeyValues) -> KeyValues:
        """Append keys and values to the cache, and return all keys and values so far.

        If there are more rows than lines, the adjacent rows of a line take the next slots of that line.
        """
        keys, values = self.write(torch.stack(new, dim=2))
        return KeyValues(keys.transpose(1, 2), values.transpose(1, 2))

    def write(self, new: Float[Tensor, "R T 2 H Dh"]) -> tuple[Float[Tensor, "B H S Dh"], Float[Tensor, "B H S Dh"]]:
        """Append keys and values, given as one tensor, and return all keys and values so far.

        In the result, the head dimension precedes the slot dimension.
        """
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
        """Keep the given lines of the cache, in the given order. A line can be given several times."""
        if self._buffer is not None:
            old = self._buffer
            self._buffer = old.new_empty(2, lines.shape[0], *old.shape[2:])
            self._buffer[:, :, :, : self.filled] = old[:, :, :, : self.filled].index_select(1, lines)


ROUND_TO = 16
"""Divisor of the number of tokens in a packed row, which is rounded up to a multiple of this number."""

Positions = slice | Int[Tensor, "*B T"]
"""Positions of tokens in their sequences, as indices into a table with one row per position."""


class AttentionInputs(NamedTuple):
    """Queries, the keys and values that they may attend to, and the attention mask."""

    queries: Float[Tensor, "B T H Dh"]
    key_values: KeyValues
    mask: Mask


@final
class PlainLayout(NamedTuple):
    """Layout of a batch of sequences of the same length.

    Every token attends to its whole sequence, unless `mask` excludes tokens.
    """

    positions: Positions
    mask: Mask = "all"

    def attention_inputs(self, qk: Float[Tensor, "B T 2 H Dh"], v: Float[Tensor, "B T H Dh"]) -> AttentionInputs:
        """Separate queries and keys, which are in one tensor. Padding is not needed."""
        queries, keys = qk.unbind(2)
        return AttentionInputs(queries, KeyValues(keys, v), self.mask)

    def pad(self, q: Shaped[Tensor, "B T *x"]) -> Shaped[Tensor, "B T *x"]:
        """Return the queries unchanged, because sequences of equal length need no padding."""
        return q

    def unpad(self, mixed: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the result unchanged, because nothing was padded."""
        return mixed


PLAIN = PlainLayout(slice(None))
"""Layout of sequences that have a token at every position."""


class PackedLayout(NamedTuple):
    """Layout of sequences of different lengths, concatenated into one row without padding.

    Every token attends to the tokens of its sequence up to and including itself, unless `mask` specifies otherwise.

    Token-wise layers process the row as it is; only attention pads the sequences again. The row is filled up to a
    multiple of 16 with copies of its first token, because oneDNN prepares each bf16 product again for every new number
    of rows, which took a seventh of each training step of the demo.

    Attributes:
        unpad_index: The index of each packed token among the B · T tokens of the padded form.
        pad_index: The index of the packed token at each position of the padded form. Padding repeats the last token of
            its sequence.
        positions: The position of each packed token in its sequence.
        num_tokens: The number of packed tokens, excluding the copies.
        mask: The tokens of the padded form that each token attends to.
    """

    unpad_index: Int[Tensor, " N"]
    pad_index: Int[Tensor, "B T"]
    positions: Int[Tensor, " N"]
    num_tokens: int
    mask: Mask = "causal"

    @property
    def last_tokens(self) -> Int[Tensor, " B"]:
        """Index of the last packed token of each sequence."""
        return self.pad_index[:, -1]

    def attention_inputs(self, qk: Float[Tensor, "1 N 2 H Dh"], v: Float[Tensor, "1 N H Dh"]) -> AttentionInputs:
        """Pad the sequences, for self-attention.

        Padding comes after the tokens of its sequence, and attention is causal, so no token attends to padding.
        """
        queries, keys = self.pad(qk).unbind(2)
        return AttentionInputs(queries, KeyValues(keys, self.pad(v)), self.mask)

    def pad(self, packed: Shaped[Tensor, "1 N *x"]) -> Shaped[Tensor, "B T *x"]:
        """Pad the sequences to T tokens."""
        return packed[0].index_select(0, self.pad_index.flatten()).unflatten(0, self.pad_index.shape)

    def unpad(self, padded: Shaped[Tensor, "B T *x"]) -> Shaped[Tensor, "1 N *x"]:
        """Return the packed row: drop the padding, and fill the row up with copies of its first token."""
        return padded.flatten(0, 1).index_select(0, self.unpad_index)[None]


def pack_lengths(lengths: Int[Tensor, " B"], longest: int, device: torch.device) -> PackedLayout:
    """Create the packed layout of sequences with the given lengths, which are at most `longest`.

    Args:
        lengths: Sequence lengths, on the CPU or on `device`. If they are on a GPU, counting the tokens
            waits for the GPU.
        longest: Number of columns in the padded form.
        device: Device of the tokens.
    """
    num_tokens = int(lengths.sum())
    lengths = lengths.to(device, non_blocking=True)
    first = lengths.cumsum(0) - lengths
    # The size of the result is given, so unlike `nonzero`, this does not wait for a GPU.
    sequences = torch.repeat_interleave(lengths, output_size=num_tokens)
    positions = torch.arange(num_tokens, device=device) - first[sequences]
    unpad_index = F.pad(sequences * longest + positions, (0, -num_tokens % ROUND_TO))
    steps = torch.arange(longest, device=device)
    pad_index = first[:, None] + steps.minimum(lengths[:, None] - 1)
    return PackedLayout(unpad_index, pad_index, unpad_index % longest, num_tokens)


LayoutOf = Callable[[Int[Tensor, " B"], int, torch.device], PackedLayout]
"""Function that creates a layout for sequences with given lengths."""


@final
class CachedLayout(NamedTuple):
    """Layout of the next tokens of sequences whose earlier tokens are in this layer's cache.

    `mask` specifies the slots of the cache that each new token attends to. The cache then already contains the new
    tokens.
    """

    cache: Cache
    positions: Positions
    mask: Mask

    def attention_inputs(self, qk: Float[Tensor, "R T 2 H Dh"], v: Float[Tensor, "R T H Dh"]) -> AttentionInputs:
        """Write the new keys and values to the cache. The new queries can attend to everything in the cache."""
        queries, keys = qk.unbind(2)
        return AttentionInputs(queries, self.cache.extend(KeyValues(keys, v)), self.mask)

    def pad(self, q: Shaped[Tensor, "R T *x"]) -> Shaped[Tensor, "R T *x"]:
        """Return the queries unchanged, because all captions have the same number of new tokens."""
        return q

    def unpad(self, mixed: Float[Tensor, "R T D"]) -> Float[Tensor, "R T D"]:
        """Return the result unchanged, because nothing was padded."""
        return mixed


Layout = PlainLayout | PackedLayout | CachedLayout


LINE_BASE = 10_000.0
"""Base of the rotation frequencies in RoFormer, used for text and for patches in raster order."""
GRID_BASE = 100.0
"""Base for the rows and columns of patches. An image has only a few dozen rows and columns, so wavelengths of thousands
of positions would be useless."""


def line_angles(num_positions: int, head_dim: int) -> Float[Tensor, "T C"]:
    """Return the angles, in radians, of the positions 0 … T-1 in a sequence, in fp64. C = `head_dim` / 2."""
    return _angles(torch.arange(num_positions), head_dim // 2, LINE_BASE)


def grid_angles(grid_size: int, head_dim: int) -> Float[Tensor, "T C"]:
    """Return the angles, in radians, of the patches in a square grid, in raster order and in fp64.

    The angles are axial: in the first half of the channels, they depend on the row, and in the second half, on the
    column. T = `grid_size`², C = `head_dim` / 2, and `head_dim` must be a multiple of 4.
    """
    steps = torch.arange(grid_size)
    rows, columns = steps.repeat_interleave(grid_size), steps.repeat(grid_size)
    channels = head_dim // 4
    return torch.cat([_angles(rows, channels, GRID_BASE), _angles(columns, channels, GRID_BASE)], dim=1)


def _angles(positions: Tensor, num_channels: int, base: float) -> Tensor:
    frequencies = base ** -(torch.arange(num_channels, dtype=torch.float64) / num_channels)
    return torch.outer(positions.double(), frequencies)


def at_least_fp32(x: Tensor) -> Tensor:
    """Convert a tensor to fp32, unless it already has a higher precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Rotary(nn.Module):
    """Layer that rotates queries and keys by the angles of their positions (RoFormer, arXiv 2104.09864).

    Each pair of adjacent channels (2c, 2c + 1) forms a complex number, which is rotated. In eager mode on a CPU, a
    complex product is three times as fast as the rotate-half form. A compiler cannot fuse complex products with
    surrounding operations, so compiled models compute the same products with real numbers.
    """

    table: Complex64[Tensor, "T C"]
    cos_sin: Float[Tensor, "T C 2"]

    def __init__(self, angles: Float[Tensor, "T C"]) -> None:
        super().__init__()
        table = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
        self.register_buffer("table", table, persistent=False)
        # This is a view of the same memory. It is a buffer, because a compiler treats the size of a buffer as fixed.
        # Otherwise, the compiler could confuse the number of channels with the number of caption tokens if the two are
        # equal.
        self.register_buffer("cos_sin", torch.view_as_real(table), persistent=False)

    def forward(self, x: Float[Tensor, "B T N H Dh"], positions: Positions) -> Float[Tensor, "B T N H Dh"]:
        """Rotate the query and key (N = 2) of every token by the token's position."""
        if torch.compiler.is_compiling():
            return self._rotate_in_real_numbers(x, positions)
        rotation = self.table[positions]  # T C, or B T C if every row has its own positions
        rotated = torch.view_as_complex(at_least_fp32(x).unflatten(-1, (-1, 2))) * rotation[..., None, None, :]
        return torch.view_as_real(rotated).flatten(-2).type_as(x)

    def _rotate_in_real_numbers(
        self, x: Float[Tensor, "B T N H Dh"], positions: Positions
    ) -> Float[Tensor, "B T N H Dh"]:
        cos, sin = self.cos_sin[positions][..., None, None, :, :].unbind(-1)
        real, imaginary = at_least_fp32(x).unflatten(-1, (-1, 2)).unbind(-1)
        rotated = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
        return rotated.flatten(-2).type_as(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotary":  # noqa: ARG002
        # `model.to(torch.bfloat16)` moves the table, but must not round its angles.
        self.table = self.table.to(fn(torch.empty(0, device=self.table.device)).device)
        self.cos_sin = torch.view_as_real(self.table)
        return self


class LearnedPosition(nn.Module):
    """Layer that adds a learned vector to each token, according to the token's position."""

    def __init__(self, num_positions: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(num_positions, embed_dim))

    def forward(self, x: Float[Tensor, "B T D"], positions: Positions) -> Float[Tensor, "B T D"]:
        """Add the vectors of the positions."""
        return x + self.embedding[positions]


class NoPosition(nn.Module):
    """Layer that adds nothing, for models that use RoPE."""

    def forward(self, x: Float[Tensor, "B T D"], _: Positions) -> Float[Tensor, "B T D"]:
        """Return x unchanged."""
        return x


class SelfAttention(nn.Module):
    """Attention of a sequence to itself. The layout of the tokens determines which tokens attend to each other.

    `qk_norm` normalizes the queries and keys of each head (arXiv 2302.05442); None leaves them unchanged. `rotary` then
    rotates them according to their positions; None means that positions have already been added to the embeddings.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        rotary: Rotary | None,
        qk_norm: nn.Module | None = None,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.rotary = rotary
        self.qk_norm = qk_norm or nn.Identity()
        self.mix = Mix()
        self.qkv_proj = nn.Linear(embed_dim, 3 * embed_dim, bias=bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)

    def forward(self, x: Float[Tensor, "R T D"], layout: Layout) -> Float[Tensor, "R T D"]:
        """Let the tokens of each sequence attend to each other."""
        qk, v = self.qkv_proj(x).split([2 * x.shape[-1], x.shape[-1]], dim=-1)  # R T 2D, R T D
        qk = self.qk_norm(qk.unflatten(-1, (2, self.num_heads, -1)))
        v = v.unflatten(-1, (self.num_heads, -1))
        if self.rotary is not None:
            qk = self.rotary(qk, layout.positions)
        return self.attend(qk, v, layout)

    def attend(
        self, qk: Float[Tensor, "R T 2 H Dh"], v: Float[Tensor, "R T H Dh"], layout: Layout
    ) -> Float[Tensor, "R T D"]:
        """Apply attention to the given queries, keys and values, and then the output projection."""
        return self.out_proj(layout.unpad(self.mix(qk, v, layout)))


class Mix(nn.Module):
    """Part of self-attention between the projections. It has no weights, and is a module so that it can be replaced."""

    def forward(
        self, qk: Float[Tensor, "R T 2 H Dh"], v: Float[Tensor, "R T H Dh"], layout: Layout
    ) -> Float[Tensor, "B S D"]:
        """Let the tokens of each sequence attend to each other.

        The result is padded as the layout requires for attention.
        """
        return _mix(layout.attention_inputs(qk, v))


class CrossAttention(nn.Module):
    """Attention of a sequence, or of learned queries, to a context of another width."""

    def __init__(self, embed_dim: int, context_dim: int, num_heads: int, *, bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.kv_proj = nn.Linear(context_dim, 2 * embed_dim, bias=bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)

    def project(self, context: Float[Tensor, "B S C"]) -> KeyValues:
        """Return the keys and values of a context.

        A caller that uses a context several times can pass them to `forward` in place of the context.
        """
        kv = self.kv_proj(context).unflatten(-1, (2, self.num_heads, -1))  # B S 2 H Dh
        return KeyValues(*kv.unbind(2))

    def projection(self) -> tuple[Float[Tensor, "O C"], Float[Tensor, " O"] | None]:
        """Return the weight and bias of the linear map from the context to the keys and values that `project` returns.

        O = 2 D.
        """
        return self.kv_proj.weight, self.kv_proj.bias

    def forward(
        self,
        x: Float[Tensor, "R T D"],
        context: Float[Tensor, "B S C"] | KeyValues,
        layout: Layout = PLAIN,
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "R T D"]:
        """Let every token read its whole context, or the tokens of the context that `mask` selects.

        If there are fewer contexts than sequences, each context is shared by R / B adjacent sequences.
        """
        q = layout.pad(self.q_proj(x).unflatten(-1, (self.num_heads, -1)))  # R T H Dh
        key_values = context if isinstance(context, KeyValues) else self.project(context)  # B S H Dh
        return self.out_proj(layout.unpad(_mix(AttentionInputs(q, key_values, to_attention_mask(mask)))))


def _mix(inputs: AttentionInputs) -> Float[Tensor, "R T D"]:
    """Let queries attend to keys and values, and concatenate the outputs of the heads."""
    q, key_values, mask = inputs
    # The queries of rows that share keys become one row of queries, so that no key is copied. L = R / B * T.
    queries = q.reshape(key_values.keys.shape[0], -1, *q.shape[2:])  # B L H Dh
    q_, k, v = (projected.transpose(1, 2) for projected in (queries, *key_values))  # B H · Dh
    if isinstance(mask, Tensor):  # ONNX needs one row per query
        mask = mask.expand(-1, -1, q_.shape[2], -1)
    mixed = scaled_attention(q_, k, v, mask)
    return mixed.transpose(1, 2).reshape(*q.shape[:2], -1)
