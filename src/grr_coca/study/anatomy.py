"""What a model is made of: parts, parameters, FLOPs, and where two models differ."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from grr_coca.config import CoCaConfig
from grr_coca.layers.block import Block, CrossBlock
from grr_coca.layers.layout import ROUND_TO
from grr_coca.model import CoCa, build
from grr_coca.model.build import build_without_weights
from grr_coca.model.image_encoder import ImageEncoder
from grr_coca.model.open_clip import TwoStepCrossBlock
from grr_coca.model.text_decoder import MultimodalDecoder, TextDecoder
from grr_coca.torch_private import flash_attention_of_cpu

CONTAINERS = (CoCa, ImageEncoder, TextDecoder, MultimodalDecoder, Block, CrossBlock, TwoStepCrossBlock)
"""What is opened in the tree of parts; everything else is a leaf of it."""


@dataclass(frozen=True)
class Part:
    """One line of the tree of parts. A stack of equal blocks is one part, `count` blocks high."""

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
"""What torch's counter leaves out."""


def num_parameters(config: CoCaConfig) -> int:
    """Number of parameters of a model."""
    return count_parameters(_without_numbers(config))


def flops_per_pair(config: CoCaConfig, text_length: int | None = None) -> int:
    """Counted FLOPs of one forward pass over one pair, head included; a training step costs three times that.

    It is that of a pair in a batch: a row of packed captions is rounded up once, and not for each caption.

    Args:
        config: the model.
        text_length: tokens of the caption, [BOS], [EOS] and [CLS] included; the whole context if None.
    """
    length = text_length or config.text_decoder.context_length
    return flops_of_pairs(config, torch.full((ROUND_TO,), length)) // ROUND_TO


def flops_of_pairs(
    config: CoCaConfig, lengths: Int[Tensor, " B"], kept_patches: Int[Tensor, " K"] | None = None
) -> int:
    """Counted FLOPs of one forward pass over a batch of B pairs, head included. Nothing is computed.

    Args:
        config: the model.
        lengths: tokens of each caption, [BOS], [EOS] and [CLS] included.
        kept_patches: the numbers of the patches that are encoded; all of them if None.
    """
    model, side = _without_numbers(config), config.image_encoder.image_size
    batch, longest = len(lengths), int(lengths.max())
    images = torch.empty(batch, 3, side, side, device="meta")
    token_ids = torch.zeros(batch, longest, dtype=torch.long)
    kept = None if kept_patches is None else kept_patches.expand(batch, -1).to("meta")
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        model.multimodal_decoder.lm_head(model(images, token_ids, lengths, kept).states)
    return counter.get_total_flops()


@lru_cache(maxsize=2)
def _without_numbers(config: CoCaConfig) -> CoCa:
    """A model on torch's meta device. Where padding lies is found by looking at lengths, which takes numbers: so the
    captions alone are packed on the CPU."""
    with torch.device("meta"):
        model = build_without_weights(config)
    pack = model.text_decoder.pack
    model.text_decoder.pack = lambda token_ids, lengths: _on_meta(pack(token_ids, lengths))  # type: ignore[method-assign]
    return model


def _on_meta(value: Any) -> Any:
    """A tensor, or a named tuple of such values, without its numbers."""
    if isinstance(value, Tensor):
        return value.to("meta")
    return type(value)(*map(_on_meta, value)) if isinstance(value, tuple) else value


def saved_bytes_per_pair(config: CoCaConfig, text_length: int | None = None) -> int:
    """Bytes in fp32 that a forward pass keeps of each pair for its backward pass. The losses keep no logits.

    It is what a third pair adds. As a row of packed captions is rounded up, it may be some per cent off where they are
    short.

    Args:
        config: the model.
        text_length: as in `flops_per_pair`.
    """
    model = build(config)  # with numbers: without them, attention takes another path, which keeps other things
    length = text_length or config.text_decoder.context_length
    return _saved_bytes(model, config, 3, length) - _saved_bytes(model, config, 2, length)


def _saved_bytes(model: CoCa, config: CoCaConfig, batch: int, length: int) -> int:
    """Bytes of all storages that autograd holds on to, each counted once; weights are among them."""
    side = config.image_encoder.image_size
    images, token_ids = torch.zeros(batch, 3, side, side), torch.zeros(batch, length, dtype=torch.long)
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images, token_ids, torch.full((batch,), length))
    del output  # until here, no storage could take another's place
    return sum(storages.values())


def parts(model: CoCa) -> list[Part]:
    """The tree of parts, depth first, the model itself left out."""
    return list(_walk(model, (), 1))[1:]


def share_that_differs(first: CoCa, second: CoCa) -> float:
    """Share of the first model's parameters that lie in leaves of another kind, or size, in the second."""
    a, b = ({part.path: (part.kind, part.num_parameters) for part in parts(m) if part.is_leaf} for m in (first, second))
    differing = sum(leaf[1] for path, leaf in a.items() if b.get(path) != leaf)
    return differing / count_parameters(first)


def _walk(module: nn.Module, path: tuple[str, ...], times: int) -> Iterator[Part]:
    count = 1
    if isinstance(module, nn.ModuleList):
        count, module = len(module), module[0]
        times *= count
    is_leaf = not isinstance(module, CONTAINERS)
    yield Part(path, type(module).__name__, count, times * count_parameters(module), is_leaf)
    if not is_leaf:
        for name, child in module.named_children():
            yield from _walk(child, (*path, name), times)
