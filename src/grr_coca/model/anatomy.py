"""Count the parameters and the FLOPs of a model."""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from grr_coca.common.errors import UserError
from grr_coca.common.torch_private import flash_attention_of_cpu
from grr_coca.model.attention import ROUND_TO
from grr_coca.model.build import build_without_weights
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig

TRAINING_PASSES = 3
"""Cost of a training step, in units of a forward pass: 1 for the forward pass, and 2 for the backward pass."""


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, whether trainable or not."""
    return sum(parameter.numel() for parameter in module.parameters())


FLOP_FORMULAS = {flash_attention_of_cpu(): lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)}
"""FLOP formulas for operations that torch's counter does not know."""


def num_parameters(config: CoCaConfig) -> int:
    """Return the number of parameters of the model that a config defines."""
    return count_parameters(_on_meta_device(config))


def flops_per_pair(config: CoCaConfig, text_length: int | None = None) -> int:
    """Return the FLOPs of a forward pass, per pair of the batch, including `lm_head`.

    A training step costs `TRAINING_PASSES` times as many.

    Args:
        config: Config of the model.
        text_length: Number of tokens in the caption, with [BOS], [EOS] and [CLS]. By default, the context length.

    Raises:
        UserError: If the model takes features of a frozen encoder.
    """
    length = text_length or config.text_decoder.context_length
    # The FLOPs of a batch are counted, because the row of packed captions is rounded up once per batch, not per pair.
    return flops_of_pairs(config, torch.full((ROUND_TO,), length)) // ROUND_TO


def flops_of_pairs(
    config: CoCaConfig, lengths: Int[Tensor, " B"], kept_patches: Int[Tensor, " K"] | None = None
) -> int:
    """Return the FLOPs of one forward pass over a batch of B pairs, including `lm_head`, without running the pass.

    Args:
        config: Config of the model.
        lengths: Number of tokens in each caption, with [BOS], [EOS] and [CLS].
        kept_patches: Indices of the patches that are encoded. If None, all patches are encoded.

    Raises:
        UserError: If the model takes features of a frozen encoder.
    """
    return _count_flops(config, tuple(lengths.tolist()), None if kept_patches is None else tuple(kept_patches.tolist()))


@lru_cache(maxsize=64)
def _count_flops(config: CoCaConfig, lengths: tuple[int, ...], kept_patches: tuple[int, ...] | None) -> int:
    """Count the FLOPs of a forward pass; see `flops_of_pairs`.

    The result is cached, because a study needs the same batch in each of its runs.
    """
    if config.feature_encoder is not None:
        raise UserError(
            "FLOPs cannot be counted for a model that takes features of a frozen encoder; use a model that takes only "
            "images"
        )
    model, side = _on_meta_device(config), config.own_image_encoder.image_size
    batch, longest = len(lengths), max(lengths)
    images = torch.empty(batch, 3, side, side, device="meta")
    token_ids = torch.zeros(batch, longest, dtype=torch.long)
    kept = None if kept_patches is None else torch.tensor(kept_patches).expand(batch, -1).to("meta")
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        model.multimodal_decoder.lm_head(model(images, token_ids, torch.tensor(lengths), kept).states)
    return counter.get_total_flops()


@lru_cache(maxsize=2)
def _on_meta_device(config: CoCaConfig) -> CoCa:
    """Build a model on torch's meta device, which stores no numbers.

    Only the packing of captions runs on the CPU, because it reads their lengths. The last two models are cached.
    """
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
