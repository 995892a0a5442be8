"""Small models that take features of a frozen encoder, and random features."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from grr_coca.data.batch import FeatureTokens
from grr_coca.model.config import CoCaConfig, FeatureEncoderConfig

FEATURE_DIM = 20


def with_features(config: CoCaConfig, *, beside: bool, num_tokens: int | None) -> CoCaConfig:
    """A config whose model takes features, in place of its own image encoder or beside it."""
    assert config.image_encoder is not None
    transformer = replace(config.image_encoder.transformer, num_layers=1, position="none")
    encoder = FeatureEncoderConfig(feature_dim=FEATURE_DIM, num_tokens=num_tokens, transformer=transformer)
    return replace(config, image_encoder=config.image_encoder if beside else None, feature_encoder=encoder)


def random_features(numbers: Sequence[int], longest: int | None = None, seed: int = 0) -> FeatureTokens:
    """FeatureTokens of images with these numbers of tokens, padded to the longest with random values."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(number, FEATURE_DIM, generator=generator) for number in numbers]
    longest = longest or max(numbers)
    tokens = torch.randn(len(numbers), longest, FEATURE_DIM, generator=generator)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    mask = torch.arange(longest) < torch.tensor(numbers)[:, None]
    return FeatureTokens(tokens, None if mask.all() else mask)
