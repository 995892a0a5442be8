"""The anatomy of a model: its parts, parameters, FLOPs, activation memory, and how it differs from another model."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from grr_coca.common.torch_private import flash_attention_of_cpu
from grr_coca.model.build import build, build_without_weights
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig
from grr_coca.model.image_encoder import ImageEncoder
from grr_coca.model.layers.block import Block, CrossBlock
from grr_coca.model.layers.layout import ROUND_TO
from grr_coca.model.text_decoder import MultimodalDecoder, TextDecoder

_CONTAINERS = (CoCa, ImageEncoder, TextDecoder, MultimodalDecoder, Block, CrossBlock)
"""Modules whose children are shown in the tree of parts, as are those of modules that have one of them as a child. All
others are leaves."""


@dataclass(frozen=True)
class Part:
    """A line of the tree of parts. A stack of `count` equal blocks is one part."""

    path: tuple[str, ...]
    kind: str
    count: int
    num_parameters: int
    is_leaf: bool


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


UNCOUNTED = {flash_attention_of_cpu(): _attention}
"""FLOP formulas of operations that torch's counter lacks."""


def num_parameters(config: CoCaConfig) -> int:
    """Number of parameters of the model of a config."""
    return count_parameters(_on_meta_device(config))


def flops_per_pair(config: CoCaConfig, text_length: int | None = None) -> int:
    """FLOPs of one forward pass over a pair of a batch, `lm_head` included; a training step costs three times that.

    Args:
        config: the model.
        text_length: number of tokens of the caption, with [BOS], [EOS] and [CLS]; None: the context length.
    """
    length = text_length or config.text_decoder.context_length
    # Not of a single pair: the row of packed captions is rounded up once for the whole batch.
    return flops_of_pairs(config, torch.full((ROUND_TO,), length)) // ROUND_TO


def flops_of_pairs(
    config: CoCaConfig, lengths: Int[Tensor, " B"], kept_patches: Int[Tensor, " K"] | None = None
) -> int:
    """FLOPs of one forward pass over a batch of B pairs, `lm_head` included. They are counted without computing.

    Args:
        config: the model.
        lengths: number of tokens of each caption, with [BOS], [EOS] and [CLS].
        kept_patches: indices of the patches that are encoded; None: all.
    """
    return _count_flops(config, tuple(lengths.tolist()), None if kept_patches is None else tuple(kept_patches.tolist()))


@lru_cache(maxsize=64)
def _count_flops(config: CoCaConfig, lengths: tuple[int, ...], kept_patches: tuple[int, ...] | None) -> int:
    """Count the FLOPs of a forward pass. The result is cached: a study asks for the same batch in each of its runs."""
    model, side = _on_meta_device(config), config.image_encoder.image_size
    batch, longest = len(lengths), max(lengths)
    images = torch.empty(batch, 3, side, side, device="meta")
    token_ids = torch.zeros(batch, longest, dtype=torch.long)
    kept = None if kept_patches is None else torch.tensor(kept_patches).expand(batch, -1).to("meta")
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        model.multimodal_decoder.lm_head(model(images, token_ids, torch.tensor(lengths), kept).states)
    return counter.get_total_flops()


@lru_cache(maxsize=2)
def _on_meta_device(config: CoCaConfig) -> CoCa:
    """A model on torch's meta device, which stores no numbers. Packing alone runs on the CPU, as it reads lengths."""
    with torch.device("meta"):
        model = build_without_weights(config)
    pack = model.text_decoder.pack

    def pack_for_meta(*padded: Any) -> Any:
        return _to_meta(pack(*padded))

    model.text_decoder.pack = pack_for_meta  # type: ignore[assignment]
    return model


def _to_meta(value: Any) -> Any:
    """Move a tensor, or a nested named tuple of tensors, to the meta device."""
    if isinstance(value, Tensor):
        return value.to("meta")
    return type(value)(*map(_to_meta, value)) if isinstance(value, tuple) else value


def saved_bytes_per_pair(config: CoCaConfig, text_length: int | None = None) -> int:
    """Activation memory: bytes in fp32 that a forward pass saves for the backward pass, for each pair.

    The losses save no logits. The result is what a third pair adds to two. For short captions it may be some per cent
    off, since the row of packed captions is rounded up.
    """
    model = build(config)  # not on the meta device, where attention saves other tensors
    length = text_length or config.text_decoder.context_length
    return _saved_bytes(model, config, 3, length) - _saved_bytes(model, config, 2, length)


def _saved_bytes(model: CoCa, config: CoCaConfig, batch: int, length: int) -> int:
    """Bytes of all storages that autograd saves, weights included, each counted once."""
    side = config.image_encoder.image_size
    images, token_ids = torch.zeros(batch, 3, side, side), torch.zeros(batch, length, dtype=torch.long)
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images, token_ids, torch.full((batch,), length))
    del output  # kept until here, so that no storage could reuse the address of another
    return sum(storages.values())


def parts(model: CoCa) -> list[Part]:
    """The tree of parts in depth-first order, without the model itself."""
    return list(_walk(model, (), 1))[1:]


def share_that_differs(first: CoCa, second: CoCa) -> float:
    """Share of the first model's parameters in leaf modules whose class or size differs in the second model."""
    a, b = ({part.path: (part.kind, part.num_parameters) for part in parts(m) if part.is_leaf} for m in (first, second))
    differing = sum(leaf[1] for path, leaf in a.items() if b.get(path) != leaf)
    return differing / count_parameters(first)


def _walk(module: nn.Module, path: tuple[str, ...], times: int) -> Iterator[Part]:
    count = 1
    if isinstance(module, nn.ModuleList):
        count, module = len(module), module[0]
        times *= count
    is_leaf = not any(isinstance(one, _CONTAINERS) for one in (module, *module.children()))
    yield Part(path, type(module).__name__, count, times * count_parameters(module), is_leaf)
    if not is_leaf:
        for name, child in module.named_children():
            yield from _walk(child, (*path, name), times)
