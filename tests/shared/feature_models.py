"""Small models that take features of a frozen encoder, and random features."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from grr_coca.data.batch import FeatureTokens
from grr_coca.infer.encoder import VisionEncoder
from grr_coca.model.build import build
from grr_coca.model.checkpoint import Checkpoint, from_pretrained, save_checkpoint
from grr_coca.model.checkpoint_files import bundled_folder
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


def write_featured_model(folder: Path, encoder: VisionEncoder, *, beside: bool = False) -> None:
    """A checkpoint of random weights in the size of `icons` that takes the tokens of an encoder."""
    shipped = bundled_folder("icons")
    assert shipped is not None
    icons = from_pretrained(shipped)
    own, info = icons.config.image_encoder, encoder.info
    features = FeatureEncoderConfig(
        feature_dim=info.embed_dim,
        num_tokens=info.num_tokens,
        transformer=replace(own.transformer, num_layers=1, position="none"),
    )
    config = replace(icons.config, image_encoder=own if beside else None, feature_encoder=features)
    checkpoint = Checkpoint(
        config=config,
        preset="grr_coca",
        tokenizer=icons.tokenizer,
        preprocess=icons.preprocess if beside else info.preprocess,
        encoder=info,
        model=build(config),
        step=0,
    )
    save_checkpoint(checkpoint, folder)
