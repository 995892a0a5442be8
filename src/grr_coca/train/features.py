"""Train with features of a frozen encoder: the feature encoder of a new run, and its statistics.

Shapes: X width of the features.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from grr_coca.common.errors import UserError
from grr_coca.common.ranks import Ranks
from grr_coca.data.dataset import make_loader
from grr_coca.data.features import EncoderInfo, Keep
from grr_coca.data.order import EvaluationOrder
from grr_coca.data.preprocess import Framing
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.features import open_features
from grr_coca.data.sources.views import Subset
from grr_coca.evaluate.split import as_dataset, with_computed_features
from grr_coca.infer.encoder import open_encoder, with_framing
from grr_coca.model.build import build
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.config import CoCaConfig, FeatureEncoderConfig, ImageEncoderConfig
from grr_coca.train.recipe import FeaturesRecipe, Recipe

_NUM_SAMPLE_IMAGES = 256
"""Number of images, evenly spread over the training pairs, from which the mean and standard deviation of the features
are computed."""
_BATCH = 32
_MIN_DEVIATION = 1e-3
"""Minimum standard deviation of a channel, as a fraction of the mean standard deviation. Without this minimum, a
channel that is constant in training could dominate the features of other images."""


def frozen_encoder(recipe: Recipe, framing: Framing | None) -> tuple[EncoderInfo, Keep]:
    """Return the description of a recipe's frozen encoder, and the kind of its features that is used.

    Args:
        recipe: Recipe with `features`.
        framing: Framing of drawings in the model. If features are not stored, drawings are also framed for the
            encoder.

    Raises:
        UserError: If the encoder cannot be opened, or a folder has no features.
    """
    features = recipe.features
    assert features is not None
    if features.encoder is None:
        header = open_features((*features.caches, recipe.data.train)[0]).header
        return header.encoder, header.keep
    encoder = open_encoder(features.encoder)
    info = encoder.info if framing is None else with_framing(encoder, framing).info
    return info, "tokens"


def with_feature_encoder(start: Checkpoint, recipe: Recipe) -> Checkpoint:
    """Return the start checkpoint of a run that trains with features.

    If the model has no feature encoder, it gets one with random weights: next to its image encoder if the recipe sets
    `features: beside`, and otherwise in place of the image encoder, together with the preprocessing of the frozen
    encoder. All remaining weights are those of the start.

    Args:
        start: Start checkpoint of the run.
        recipe: Recipe of the run, with `features`.

    Raises:
        UserError: If the frozen encoder cannot be used, if it or `beside` differs from the start, or if the model does
            not support features.
    """
    features = recipe.features
    assert features is not None
    info, keep = frozen_encoder(recipe, start.preprocess.framing)
    if start.encoder is not None:
        _require_same(start, info, keep, features)
        return start
    config = feature_config(start.config, info, keep, features)
    model = build(config, recipe.seed).to(start.model.device).train(start.model.training)
    names = model.state_dict().keys()
    kept = {name: tensor for name, tensor in start.model.state_dict().items() if name in names}
    model.load_state_dict(kept, strict=False)
    preprocess = start.preprocess if features.beside else info.preprocess
    return replace(start, model=model, config=config, encoder=info, preprocess=preprocess)


def _require_same(start: Checkpoint, info: EncoderInfo, keep: Keep, features: FeaturesRecipe) -> None:
    own, taken = start.encoder, start.config.feature_encoder
    assert own is not None
    assert taken is not None
    if own.digest != info.digest or taken.keep != keep:
        raise UserError(
            f"features: {info.name} ({keep}) differs from the frozen encoder of the checkpoint, {own.name} "
            f"({taken.keep}), in weights, preprocessing or kind of features; use the checkpoint's encoder"
        )
    if (start.config.image_encoder is not None) != features.beside:
        raise UserError(f"features: beside must be {str(not features.beside).lower()}, as in the checkpoint")


def feature_config(config: CoCaConfig, info: EncoderInfo, keep: Keep, features: FeaturesRecipe) -> CoCaConfig:
    """Add a feature encoder, with the same parts as the image encoder, to the config of a model.

    Args:
        config: Config without a feature encoder.
        info: Frozen encoder.
        keep: Kind of features of each image.
        features: Settings of the features in the recipe.

    Raises:
        UserError: If the model has no image encoder, or its architecture takes no features.
    """
    own: ImageEncoderConfig = config.own_image_encoder
    encoder = FeatureEncoderConfig(
        feature_dim=info.embed_dim,
        keep=keep,
        num_tokens=1 if keep == "mean" else info.num_tokens,
        transformer=replace(own.transformer, num_layers=features.layers, position="none"),
    )
    return replace(config, image_encoder=own if features.beside else None, feature_encoder=encoder)


@torch.no_grad()
def standardize(start: Checkpoint, pairs: PairSource, ranks: Ranks) -> None:
    """Set the mean and standard deviation of each feature channel from some training images, unless the start already
    has them.

    All ranks must call this function.

    Args:
        start: Start checkpoint of the run, changed in place.
        pairs: Training pairs.
        ranks: All ranks, of which the first computes the statistics.

    Raises:
        UserError: If features cannot be computed.
    """
    encoder = start.model.feature_encoder
    assert encoder is not None
    if encoder.mean.any():
        return
    mean, deviation = ranks.run_on_first(lambda: _statistics(start, pairs))
    encoder.mean.copy_(mean)
    encoder.deviation.copy_(deviation)


def _statistics(start: Checkpoint, pairs: PairSource) -> tuple[Tensor, Tensor]:
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(_NUM_SAMPLE_IMAGES, len(pairs))).astype(int))
    dataset = as_dataset(start, Subset(pairs, chosen))
    loader = make_loader(dataset, EvaluationOrder(len(dataset), _BATCH), 0, warns=False)
    rows = []
    for batch in with_computed_features(loader, start):
        assert batch.features is not None
        tokens, mask = batch.features
        rows.append(tokens.flatten(0, 1) if mask is None else tokens[mask])
    tokens = torch.cat(rows).double()
    deviation = tokens.std(dim=0, correction=0)
    lowest = _MIN_DEVIATION * deviation.mean()
    deviation = torch.where(deviation > lowest, deviation, lowest if lowest > 0 else torch.ones_like(lowest))
    return tokens.mean(dim=0).float(), deviation.float()
