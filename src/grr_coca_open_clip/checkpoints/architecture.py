"""Infer the architecture of open_clip's CoCa from the shapes of its tensors."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from grr_coca.common.errors import UserError
from grr_coca.model.config import CoCaConfig, TransformerConfig
from grr_coca.model.presets import get_preset

_HEAD_DIM = 64
"""Number of channels per head in both published models, except in the pooler."""
_POOLER_HEADS = 8

_UNSUPPORTED = {
    "visual.trunk.": "an image tower of timm",
    "visual.attn_pool_contrastive.": "two poolers (vision_cfg: attentional_pool 'parallel' or 'cascade')",
    "visual.head.": "an image tower of timm",
    "text.transformer.embeddings.": "a text tower of Hugging Face (as in coca_roberta)",
    "text.transformer.encoder.": "a text tower of Hugging Face (as in coca_roberta)",
    "visual.layer1.": "a ResNet as image tower",
}
"""Prefixes of tensor names that only unsupported models have, with the parts that these models contain."""


@dataclass(frozen=True)
class Heads:
    """Numbers of attention heads, which cannot be inferred from shapes. None means 64 channels per head."""

    image: int | None = None
    text: int | None = None
    multimodal: int | None = None
    pooler: int = _POOLER_HEADS


def infer_config(tensors: Mapping[str, Tensor], heads: Heads, name: str) -> CoCaConfig:
    """Infer the config of a model from its tensors.

    Args:
        tensors: Tensors under open_clip's names. Only their names and shapes are used.
        heads: Numbers of attention heads.
        name: Name of the file in messages.

    Raises:
        UserError: If the tensors are not those of open_clip's CoCa, or belong to a variant that our model does not
            support.
    """
    _require_supported(tensors, name)
    shapes = _Shapes(tensors, name)
    image_dim, _, patch_size, _ = shapes.of("visual.conv1.weight", 4)
    num_positions = shapes.of("visual.positional_embedding", 2)[0]
    grid_size = math.isqrt(num_positions - 1)
    if grid_size**2 != num_positions - 1:
        raise UserError(
            f"{name}: the number of rows of visual.positional_embedding must be 1 more than a square number, got "
            f"{num_positions}"
        )
    num_queries, pooled_dim = shapes.of("visual.attn_pool.query", 2)
    vocab_size, text_dim = shapes.of("text.token_embedding.weight", 2)
    if pooled_dim != text_dim:
        raise UserError(
            f"{name}: visual.attn_pool.query has width {pooled_dim}, but must have the width of the text, {text_dim}"
        )
    config = get_preset("open_clip_coca", "b32")
    image, text, multimodal = config.own_image_encoder, config.text_decoder, config.multimodal_decoder
    return replace(
        config,
        embed_dim=shapes.of("visual.proj", 2)[1],
        image_encoder=replace(
            image,
            image_size=grid_size * patch_size,
            patch_size=patch_size,
            transformer=shapes.stack(image.transformer, "visual.transformer.resblocks", image_dim, heads.image),
        ),
        text_decoder=replace(
            text,
            vocab_size=vocab_size,
            context_length=shapes.of("text.positional_embedding", 2)[0],
            transformer=shapes.stack(text.transformer, "text.transformer.resblocks", text_dim, heads.text),
        ),
        multimodal_decoder=replace(
            multimodal,
            transformer=shapes.stack(multimodal.transformer, "text_decoder.resblocks", text_dim, heads.multimodal),
        ),
        poolers=replace(config.poolers, num_queries=num_queries, num_heads=heads.pooler),
    )


class _Shapes:
    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        self._tensors, self._name = tensors, name

    def of(self, tensor: str, ndim: int) -> tuple[int, ...]:
        if tensor not in self._tensors:
            raise UserError(f"{self._name}: tensor '{tensor}' is missing; pass an open_clip CoCa with a pooler")
        shape = tuple(self._tensors[tensor].shape)
        if len(shape) != ndim:
            raise UserError(
                f"{self._name}: tensor '{tensor}' must have {ndim} dimensions, got the shape {shape}; pass an "
                "open_clip CoCa with a pooler"
            )
        if 0 in shape:
            raise UserError(
                f"{self._name}: tensor '{tensor}' has the shape {shape}, which is empty; download the file again"
            )
        return shape

    def stack(self, parts: TransformerConfig, prefix: str, width: int, num_heads: int | None) -> TransformerConfig:
        """Return the config of a stack of blocks: `parts` with the stack's depth and widths."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d{1,4})\.")
        blocks = {int(match[1]) for match in map(pattern.match, self._tensors) if match}
        if blocks != set(range(len(blocks))):
            raise UserError(
                f"{self._name}: {prefix} has blocks up to {max(blocks)}, but some are missing; download the file again"
            )
        hidden_dim = self.of(f"{prefix}.0.mlp.c_fc.weight", 2)[0]
        num_heads = num_heads or max(1, width // _HEAD_DIM)
        if width % num_heads:
            raise UserError(
                f"{self._name}: {prefix} has width {width}, which is not divisible by {num_heads} heads; correct the "
                "number of heads in open_clip_config.json"
            )
        return replace(parts, num_layers=max(blocks) + 1, embed_dim=width, num_heads=num_heads, hidden_dim=hidden_dim)


def _require_supported(tensors: Mapping[str, Tensor], name: str) -> None:
    for tensor in tensors:
        for prefix, what in _UNSUPPORTED.items():
            if tensor.startswith(prefix):
                raise UserError(f"{name}: tensor '{tensor}': unsupported: {what}")
