"""Fit a checkpoint to larger or smaller images and to longer captions, for fine-tuning.

RoPE's tables, which are not weights, are computed for the new grid and the new context. Learned patch positions are
interpolated (bicubic, as for ViT, arXiv 2010.11929). Learned token positions are kept, and new positions are copies of
the last position, so captions that fitted before keep their embeddings and probabilities.

Shapes: P patches, D width, T positions of tokens.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from grr_coca.common.errors import UserError
from grr_coca.model.build import build_without_weights
from grr_coca.model.checkpoint import Checkpoint

_PATCHES, _TOKENS = "image_encoder.position.embedding", "text_decoder.position.embedding"


def resize_checkpoint(
    checkpoint: Checkpoint, image_size: int | None = None, context_length: int | None = None
) -> Checkpoint:
    """Convert a checkpoint to images of another size and captions of another length.

    Args:
        checkpoint: Checkpoint to start from. It is not changed.
        image_size: New image size in pixels. None keeps the present size.
        context_length: New maximum number of tokens in a caption. None keeps the present maximum.

    Raises:
        UserError: If the size is not a multiple of the patch size, or the new context is shorter than the old context.
    """
    config = checkpoint.config
    image, text = config.own_image_encoder, config.text_decoder
    image_size, context_length = image_size or image.image_size, context_length or text.context_length
    if (image_size, context_length) == (image.image_size, text.context_length):
        return checkpoint
    if context_length < text.context_length:
        raise UserError(
            f"context_length must be at least {text.context_length}, as in the checkpoint, because a "
            "context can only be "
            f"lengthened, got {context_length}"
        )
    config = replace(
        config,
        image_encoder=replace(image, image_size=image_size),
        text_decoder=replace(text, context_length=context_length),
    )
    model, weights = build_without_weights(config), dict(checkpoint.model.state_dict())
    if _PATCHES in weights:
        weights[_PATCHES] = _interpolate(weights[_PATCHES], config.own_image_encoder.grid_size)
    if _TOKENS in weights:
        weights[_TOKENS] = _extend(weights[_TOKENS], context_length)
    model.load_state_dict(weights)
    model = model.to(checkpoint.model.device).train(checkpoint.model.training)
    preprocess = replace(checkpoint.preprocess, image_size=image_size)
    return replace(checkpoint, config=config, model=model, preprocess=preprocess)


def _interpolate(positions: Float[Tensor, "P D"], grid_size: int) -> Float[Tensor, "Q D"]:
    """Interpolate the learned positions of patches in a square grid to another grid size."""
    old = math.isqrt(len(positions))
    if old == grid_size:
        return positions
    grid = positions.unflatten(0, (old, old)).permute(2, 0, 1)[None].float()  # 1 D h w
    grid = F.interpolate(grid, (grid_size, grid_size), mode="bicubic", antialias=True)
    return grid[0].flatten(1).T.contiguous().type_as(positions)


def _extend(positions: Float[Tensor, "T D"], context_length: int) -> Float[Tensor, "U D"]:
    """Extend the learned positions of tokens to a longer context.

    The last position stays last, because it belongs to open_clip's [CLS].
    """
    return torch.cat([positions, positions[-1:].expand(context_length - len(positions), -1)])
