"""What a model is made of: parts, parameters, FLOPs, and where two models differ."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from grr_coca.batch import CoCaOutput
from grr_coca.config import CoCaConfig
from grr_coca.layers.block import Block, CrossBlock, TwoStepCrossBlock
from grr_coca.model import CoCa, build
from grr_coca.model.image_encoder import ImageEncoder
from grr_coca.model.multimodal_decoder import MultimodalDecoder
from grr_coca.model.text_decoder import TextDecoder
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
    return count_parameters(_some_model(config))


def flops_per_pair(config: CoCaConfig, text_length: int | None = None, kept_patches: Tensor | None = None) -> int:
    """Counted FLOPs of one forward pass over one pair, head included; a training step costs three times that.

    Args:
        config: the model.
        text_length: tokens of the caption, [BOS], [EOS] and [CLS] included; the whole context if None.
        kept_patches: the numbers of the patches that are encoded; all of them if None.
    """
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        _some_model(config).multimodal_decoder.lm_head(_forward(config, 1, text_length, kept_patches).states)
    return counter.get_total_flops()


def saved_bytes_per_pair(config: CoCaConfig, text_length: int | None = None) -> int:
    """Bytes in fp32 that a forward pass keeps of each pair for its backward pass. The losses keep no logits.

    Args:
        config: the model.
        text_length: as in `flops_per_pair`.
    """
    return _saved_bytes(config, 3, text_length) - _saved_bytes(config, 2, text_length)


def _saved_bytes(config: CoCaConfig, batch: int, text_length: int | None) -> int:
    """Bytes of all storages that autograd holds on to, each counted once; weights are among them."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = _forward(config, batch, text_length)
    del output  # until here, no storage could take another's place
    return sum(storages.values())


@lru_cache(maxsize=2)
def _some_model(config: CoCaConfig) -> CoCa:
    """Drawing the weights of a large one takes seconds."""
    return build(config)


def _forward(config: CoCaConfig, batch: int, text_length: int | None, kept_patches: Tensor | None = None) -> CoCaOutput:
    """A real pass over blank pairs: padding is found by looking at lengths, so shapes alone will not do."""
    length = text_length or config.text_decoder.context_length
    side = config.image_encoder.image_size
    token_ids = torch.zeros(batch, length, dtype=torch.long)
    kept = None if kept_patches is None else kept_patches.expand(batch, -1)
    return _some_model(config)(torch.zeros(batch, 3, side, side), token_ids, torch.full((batch,), length), kept)


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
