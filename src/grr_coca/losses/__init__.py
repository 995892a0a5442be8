"""CoCa's losses, as pure functions of tensors (arXiv 2205.01917, section 3.1)."""

from grr_coca.losses.captioning import CaptioningLoss, captioning_loss, token_losses
from grr_coca.losses.coca import Losses, LossWeights, batch_loss, coca_loss
from grr_coca.losses.contrastive import EmbeddedPairs, contrastive_loss, same_pair

__all__ = [
    "CaptioningLoss",
    "EmbeddedPairs",
    "LossWeights",
    "Losses",
    "batch_loss",
    "captioning_loss",
    "coca_loss",
    "contrastive_loss",
    "same_pair",
    "token_losses",
]
