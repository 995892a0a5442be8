"""Engine of a model that takes features, which a frozen third-party encoder computes from pixels.

Shapes: B images, S image size in pixels, F image size of the frozen encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.common.shapes import Float, UInt8
from grr_coca.data.feature_image import features_of_pixels, tokens_digest
from grr_coca.data.features import EncoderInfo, Keep
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.stored_tokens import find_tokens
from grr_coca.infer.encoder import (
    GivenEncoder,
    ImageTokens,
    VisionEncoder,
    feature_preprocess,
    open_encoder,
    open_encoder_from_info,
    open_or_make_given_encoder,
)
from grr_coca.infer.engine.base import EncodedImages, Engine, WrappedEngine
from grr_coca.model.checkpoint_files import FROZEN_FILES, CheckpointFiles


@runtime_checkable
class FeatureReader(Protocol):
    """Interface of engines for models that take features. It has one method in addition to those of `Engine`."""

    def encode_features(
        self, features: ImageTokens, pixels: UInt8[np.ndarray, "B S S 3"] | None = None
    ) -> EncodedImages:
        """Encode features in the same way as `Engine.encode_images` encodes images.

        Args:
            features: Features that the model was trained with: all tokens, or their mean.
            pixels: Pixels for the model's own image encoder. None if the model has no image encoder.
        """
        ...


class FrozenEngine(WrappedEngine):
    """Engine of a model that takes features. It takes the pixels of a frozen encoder, which computes the features.

    Args:
        base: Engine of the model, which must also be a `FeatureReader`.
        encoder: Frozen encoder.
        keep: Whether the features are all tokens of an image, or their mean.
        own: Preprocessing of the model's own image encoder, applied to the frozen encoder's square images. None if the
            model has no image encoder.
    """

    def __init__(self, base: Engine, encoder: VisionEncoder, keep: Keep, own: Preprocess | None) -> None:
        super().__init__(base)
        self.encoder, self.keep, self.own = encoder, keep, own

    @property
    def workers(self) -> int:
        """Number of workers: 1, because the encoder uses all cores for one batch."""
        return 1

    def encode_images(self, pixels: UInt8[np.ndarray, "B F F 3"]) -> EncodedImages:
        """Encode images; see `Engine`. If the model has no image encoder, pixels may contain features; see
        `grr_coca.data.feature_image`.
        """
        stored = [self._stored_features(image) for image in pixels] if self.own is None else []
        if any(row is not None for row in stored):
            rows = [
                _remove_padding(self.encoder.encode(image[None]).select(self.keep)) if row is None else row
                for image, row in zip(pixels, stored, strict=True)
            ]
            return self.encode_features(stack_tokens(rows))
        return self.encode_features(self.encoder.encode(pixels).select(self.keep), own_pixels(pixels, self.own))

    def _stored_features(self, image: UInt8[np.ndarray, "F F 3"]) -> Float[np.ndarray, "N D"] | None:
        """Return the features that a square of pixels contains or refers to, or None if it is an ordinary image.

        Raises:
            UserError: If the model takes all tokens of an image, but the pixels contain only their mean, or refer to
                tokens that are not stored in a folder that this process reads.
        """
        mean = features_of_pixels(image)
        if mean is None or self.keep == "mean":
            return None if mean is None else mean[None]
        digest = tokens_digest(image.tobytes())
        if digest is None:
            raise UserError(
                "these features are means, but this model takes all tokens of an image; compute the features with "
                "--keep tokens"
            )
        tokens = find_tokens(self.encoder.info.digest, digest)
        if tokens is None:
            raise UserError(
                "the tokens of these features are not stored here; pass the folder of features that has them"
            )
        return tokens.astype(np.float32)

    def with_stored(self, rows: Sequence[Float[np.ndarray, "_ D"]]) -> "FrozenEngine":
        """Return a copy of this engine that uses known features instead of encoding images.

        Args:
            rows: Features of each image in the next call of `encode_images`.
        """
        return FrozenEngine(self.base, _Stored(self.encoder.info, rows), "tokens", self.own)

    def refresh(self) -> None:
        """Use the current weights of a base engine in PyTorch; see `TorchEngine`."""
        self.base.refresh()  # type: ignore[attr-defined]

    def encode_features(
        self, features: ImageTokens, pixels: UInt8[np.ndarray, "B S S 3"] | None = None
    ) -> EncodedImages:
        """Encode features; see `FeatureReader`."""
        return cast(FeatureReader, self.base).encode_features(features, pixels)


def with_frozen_encoder(
    files: CheckpointFiles, base: Engine, folder: Path | None = None
) -> tuple[CheckpointFiles, FrozenEngine]:
    """Return the files and the engine of a model that takes features, changed to take the pixels of its frozen encoder.

    Args:
        files: Files of the model, or its checkpoint.
        base: Engine of the model.
        folder: Folder of the model, which may contain the encoder as a graph. If None, the encoder is opened by its
            name.

    Raises:
        UserError: If the encoder is missing, or has changed.
    """
    info, features = files.encoder, files.config.feature_encoder
    assert info is not None, "this model takes features"
    assert features is not None
    own = files.preprocess if files.config.image_encoder is not None else None
    encoder = open_frozen(info, folder, or_given=own is None)
    engine = FrozenEngine(base, encoder, features.keep, own)
    preprocess = feature_preprocess(encoder, features.keep) if own is None else info.preprocess
    return replace(files, preprocess=preprocess), engine


def _remove_padding(image: ImageTokens) -> Float[np.ndarray, "N D"]:
    """Return the tokens of a single image, without padding."""
    return image.tokens[0][image.mask[0]]


def stack_tokens(rows: Sequence[Float[np.ndarray, "_ D"]]) -> ImageTokens:
    """Pad the features of one or more images with zeros, and stack them in one array."""
    lengths = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), lengths.max(), rows[0].shape[1]), np.float32)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    return ImageTokens(tokens, np.arange(tokens.shape[1]) < lengths[:, None])


@dataclass
class _Stored(GivenEncoder):
    """Encoder that returns known tokens for the images of the next call."""

    rows: Sequence[np.ndarray]

    def encode(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> ImageTokens:
        assert len(pixels) == len(self.rows)
        return stack_tokens(self.rows)


def open_frozen(info: EncoderInfo, folder: Path | None, *, or_given: bool = False) -> VisionEncoder:
    """Open the frozen encoder of a model, from the graph in its folder or else by its name.

    Args:
        info: Description of the encoder.
        folder: Folder of the model, or None if the encoder must be opened by its name.
        or_given: Whether to return an encoder that is known only by its features if the encoder cannot be opened.

    Raises:
        UserError: If the encoder is missing, or has changed.
    """
    path = None if folder is None else folder / FROZEN_FILES[1]
    if path is None or not path.is_file():
        return open_or_make_given_encoder(info) if or_given else open_encoder_from_info(info)
    encoder = open_encoder(f"onnx:{path}")
    if encoder.info.digest != info.digest:
        raise UserError(f"{path}: not the encoder that config.json specifies; run `grr-coca export onnx` again")
    return encoder


def own_pixels(squares: UInt8[np.ndarray, "B F F 3"], own: Preprocess | None) -> UInt8[np.ndarray, "B S S 3"] | None:
    """Convert the frozen encoder's square images to pixels for the model's own image encoder.

    Return None if the model has no image encoder."""
    return None if own is None else np.stack([own(Image.fromarray(square)) for square in squares])
