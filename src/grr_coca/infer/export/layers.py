"""Layers that are exported as ONNX operators. `make_exportable` puts them into a copy of a model.

Each layer is equivalent, up to rounding, to the layer that it replaces.

Shapes: B sequences, R rows of captions, T tokens of the longest sequence, N = B · T, P earlier tokens, D width, H heads
of width Dh, C = Dh / 2 complex channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Complex64, Float, Int, Shaped
from torch import Tensor, nn
from torch.onnx.ops import attention, rotary_embedding

from grr_coca.common.torch_private import children_of, copy_with_children
from grr_coca.model.attention import CachedLayout, KeyValues, Layout, Mix, PackedLayout, PlainLayout, Positions, Rotary

Module = TypeVar("Module", bound=nn.Module)


def make_exportable(model: Module) -> Module:
    """Return a copy of a model in which layers of this module replace the original layers. Parameters are shared."""
    return _swap_layers(model)  # type: ignore[return-value]


def _swap_layers(module: nn.Module) -> nn.Module:
    if type(module) in _ONNX_LAYERS:
        return _ONNX_LAYERS[type(module)](module)
    children = children_of(module).items()
    return copy_with_children(
        module, {name: None if child is None else _swap_layers(child) for name, child in children}
    )


class OnnxRotary(nn.Module):
    """`Rotary` as a single operator, because ONNX does not support complex numbers."""

    table: Complex64[Tensor, "T C"]

    def __init__(self, rotary: Rotary) -> None:
        super().__init__()
        self.register_buffer("table", rotary.table, persistent=False)

    def forward(self, x: Float[Tensor, "B T N H Dh"], positions: Positions) -> Float[Tensor, "B T N H Dh"]:
        """Apply the layer; see `Rotary`."""
        cos, sin = (part[positions].expand(x.shape[0], -1, -1) for part in (self.table.real, self.table.imag))  # B T C
        rotated = rotary_embedding(x.flatten(2), cos, sin, interleaved=True, num_heads=x.shape[2] * x.shape[3])
        return rotated.view_as(x)


class OnnxMix(nn.Module):
    """`Mix` as a single operator.

    The operator takes concatenated heads, and also extends the cache. With separate operators, a step of a small model
    would take a third longer.
    """

    def __init__(self, _: Mix) -> None:
        super().__init__()

    def forward(
        self, qk: Float[Tensor, "R T 2 H Dh"], v: Float[Tensor, "R T H Dh"], layout: Layout
    ) -> Float[Tensor, "B S D"]:
        """Apply the layer; see `Mix`. A cache must be a `GrowingCache`."""
        q, k = layout.pad(qk).flatten(2).chunk(2, dim=-1)  # B T D each
        mask = layout.mask if isinstance(layout.mask, Tensor) else None
        if mask is not None and isinstance(layout, PlainLayout):  # the operator needs one row per query
            mask = mask.expand(-1, -1, q.shape[1], -1)
        cache = layout.cache if isinstance(layout, CachedLayout) else None
        assert cache is None or isinstance(cache, GrowingCache)
        mixed, keys, values, _ = attention(
            q,
            k,
            layout.pad(v).flatten(2),
            mask,
            *(() if cache is None else (cache.keys, cache.values)),
            is_causal=not isinstance(layout.mask, Tensor) and layout.mask == "causal",
            q_num_heads=v.shape[2],
            kv_num_heads=v.shape[2],
        )
        if cache is not None:
            cache.keys, cache.values = keys, values
        return mixed


_ONNX_LAYERS: Mapping[type[nn.Module], Callable[..., nn.Module]] = {Rotary: OnnxRotary, Mix: OnnxMix}


@dataclass
class GrowingCache:
    """Keys and values of one attention layer. Each step replaces them by longer tensors."""

    keys: Float[Tensor, "R H P Dh"]
    values: Float[Tensor, "R H P Dh"]

    def extend(self, new: KeyValues) -> KeyValues:
        """Append keys and values; see `Cache`."""
        self.keys, self.values = (
            torch.cat([old, added.transpose(1, 2)], dim=2)
            for old, added in zip((self.keys, self.values), new, strict=True)
        )
        return KeyValues(self.keys.transpose(1, 2), self.values.transpose(1, 2))


class PaddedLayout(PackedLayout):
    """Layout of sequences in one row that keep their padding, because in a graph, the number of tokens can depend only
    on shapes."""

    def pad(self, packed: Shaped[Tensor, "1 N *x"]) -> Shaped[Tensor, "B T *x"]:
        """Separate the sequences, which are already padded."""
        return packed.flatten(0, 1).unflatten(0, self.pad_index.shape)

    def unpad(self, padded: Shaped[Tensor, "B T *x"]) -> Shaped[Tensor, "1 N *x"]:
        """Join the sequences, with their padding."""
        return padded.flatten(0, 1).unflatten(0, (1, -1))


def pad_lengths(lengths: Int[Tensor, " B"], longest: int, device: torch.device) -> PaddedLayout:
    """Return the layout of sequences with the given lengths, padded to `longest` tokens, with its tensors on
    `device`."""
    steps = torch.arange(longest, device=device)
    last = lengths[:, None] - 1
    unpad_index = torch.arange(lengths.shape[0] * longest, device=device)
    first = torch.arange(lengths.shape[0], device=device)[:, None] * longest
    # Padding has the position of its sequence's last token, so that every position has a row in the tables.
    return PaddedLayout(unpad_index, first + steps.minimum(last), steps.minimum(last).flatten(), unpad_index.shape[0])
