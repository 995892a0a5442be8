"""The training step: batch to losses to gradients."""

import timeit
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from grr_coca.batch import Batch
from grr_coca.losses import EmbeddedPairs, Losses, captioning_loss, coca_loss, contrastive_loss, same_pair, z_loss
from grr_coca.model import CoCa
from grr_coca.train.optimizer import Optimizers
from grr_coca.train.recipe import LossRecipe, Precision

PROBE_TOKENS = 1024


def compute_losses(model: CoCa, batch: Batch, weights: LossRecipe) -> Losses:
    """Both losses of a batch and their weighted sum."""
    output = model(batch.images, batch.token_ids, batch.lengths, batch.kept_patches)
    same = same_pair(batch.caption_ids, batch.image_ids)
    pairs = EmbeddedPairs(output.image_embedding, output.text_embedding)
    contrastive = contrastive_loss(pairs, pairs, model.logit_scale, model.logit_bias, same, 0)
    captioning = captioning_loss(output.logits, batch.labels)
    losses = coca_loss(contrastive, captioning, weights.contrastive_weight, weights.captioning_weight)
    if not weights.z_loss_weight:
        return losses
    return losses._replace(coca=losses.coca + weights.z_loss_weight * z_loss(output.logits, batch.labels))


def train_step(
    model: CoCa,
    batch: Batch,
    optimizers: Optimizers,
    weights: LossRecipe,
    precision: AbstractContextManager,
    step: int,
) -> dict[str, Tensor | float]:
    """Forward, backward, update; `step` counts from 0. The metrics stay on the device."""
    with precision:
        losses = compute_losses(model, batch, weights)
    losses.coca.backward()
    grad_norm, lr = optimizers.step(step)
    model.clamp_logit_scale()
    return {**losses.detached(), "grad_norm": grad_norm, "lr": lr}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context of a run's forward passes: bf16 autocast, or nothing. Enter it as often as you like."""
    assert precision != "auto", "resolve_precision comes first"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def resolve_precision(precision: Precision, device: torch.device, width: int) -> Precision:
    """What `auto` means on this machine: bf16 where it gains from that, else fp32.

    CUDA cards that have bf16 gain; a CPU gains when one feed-forward product of the model's width is faster in
    bf16 than in fp32, measured here and now.
    """
    if precision != "auto":
        return precision
    gains = torch.cuda.is_bf16_supported() if device.type == "cuda" else _bf16_is_faster(width)
    return "bf16" if gains else "fp32"


def _bf16_is_faster(width: int) -> bool:
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(PROBE_TOKENS, width, dtype=dtype), torch.randn(4 * width, width, dtype=dtype)
        seconds[dtype] = min(timeit.repeat(partial(F.linear, x, weight), number=1, repeat=5))
    # Casts and copies around each product eat small gains.
    return seconds[torch.bfloat16] < seconds[torch.float32] / 1.5
