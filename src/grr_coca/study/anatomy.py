"""What a model is made of: parts, parameters, FLOPs, and where two models differ."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from grr_coca.config import CoCaConfig
from grr_coca.layers.block import Block, CrossBlock
from grr_coca.model import CoCa, build
from grr_coca.model.image_encoder import ImageEncoder
from grr_coca.model.multimodal_decoder import MultimodalDecoder
from grr_coca.model.text_decoder import TextDecoder

CONTAINERS = (CoCa, ImageEncoder, TextDecoder, MultimodalDecoder, Block, CrossBlock)
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


def flops_per_pair(config: CoCaConfig, text_length: int | None = None) -> int:
    """Counted FLOPs of one forward pass over one pair; a training step costs three times that.

    Args:
        config: the model.
        text_length: tokens of the caption, [BOS], [EOS] and [CLS] included; the whole context if None.
    """
    length = text_length or config.text_decoder.context_length
    side = config.image_encoder.image_size
    model = build(config)
    token_ids = torch.zeros(1, length, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, side, side), token_ids, torch.tensor([length])).logits
    return counter.get_total_flops()


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
