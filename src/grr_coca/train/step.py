"""The training step: batch to losses to gradients."""

from contextlib import AbstractContextManager, nullcontext

import torch

from grr_coca.batch import Batch
from grr_coca.losses import Losses, captioning_loss, coca_loss, contrastive_loss, same_pair
from grr_coca.model import CoCa
from grr_coca.train.recipe import LossRecipe


def compute_losses(model: CoCa, batch: Batch, weights: LossRecipe) -> Losses:
    """Both losses of a batch and their weighted sum."""
    output = model(batch.images, batch.token_ids, batch.lengths)
    same = same_pair(batch.caption_ids, batch.image_ids)
    contrastive = contrastive_loss(output.image_embedding, output.text_embedding, model.logit_scale, same)
    captioning = captioning_loss(output.logits, batch.labels)
    return coca_loss(contrastive, captioning, weights.contrastive_weight, weights.captioning_weight)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """bf16 autocast where asked for, or under `auto` where the machine gains: on CUDA cards that have it."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
