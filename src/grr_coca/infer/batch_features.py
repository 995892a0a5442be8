"""Compute the missing features of batches with a frozen encoder, in this process instead of in a worker of the
loader."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache

import torch

from grr_coca.data.batch import Batch, FeatureTokens
from grr_coca.data.dataset import FrozenInput
from grr_coca.data.features import EncoderInfo
from grr_coca.infer.encoder import VisionEncoder, open_described
from grr_coca.model.checkpoint_files import CheckpointFiles


def frozen_input(files: CheckpointFiles) -> FrozenInput | None:
    """Return what a dataset must know about the frozen encoder, or None if the model takes no features."""
    if files.encoder is None:
        return None
    return FrozenInput(files.encoder.preprocess, files.config.image_encoder is not None)


@lru_cache(maxsize=1)
def opened(info: EncoderInfo, device: str | None = None) -> VisionEncoder:
    """Open the encoder with this description. The most recently opened encoder stays cached for the next validation.

    Raises:
        UserError: If the encoder cannot be opened, or differs from its description.
    """
    return open_described(info, device)


def with_computed_features(batches: Iterable[Batch], files: CheckpointFiles) -> Iterator[Batch]:
    """Yield batches with the features of their images, computing those that are missing.

    Args:
        batches: Batches from a dataset that was opened for the model.
        files: The model, or all of its files except the weights.

    Raises:
        UserError: If features are missing, and the encoder cannot be opened.
    """
    for batch in batches:
        if batch.encoder_pixels is not None:
            assert files.encoder is not None, "only its dataset makes these pixels"
            assert files.config.feature_encoder is not None
            found = opened(files.encoder).encode(batch.encoder_pixels.numpy()).kept(files.config.feature_encoder.keep)
            mask = None if found.mask.all() else torch.from_numpy(found.mask)
            batch = replace(batch, features=FeatureTokens(torch.from_numpy(found.tokens), mask), encoder_pixels=None)
        yield batch
