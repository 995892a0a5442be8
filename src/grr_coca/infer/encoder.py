"""External image encoders, which convert pixels to tokens. Packages register encoders under a scheme, such as `timm`.

Shapes: B images, S image size in pixels, N tokens, D width.
"""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from grr_coca.common import plugins
from grr_coca.common.errors import UserError, suggest_name
from grr_coca.common.shapes import Bool, Float, UInt8
from grr_coca.data.feature_image import feature_side
from grr_coca.data.features import EncoderInfo, Keep
from grr_coca.data.preprocess import EncoderPreprocess, FeaturePreprocess, Framing

log = logging.getLogger(__name__)

UNKNOWN_LICENCE = "unknown"
GIVEN = "given"
"""Scheme of encoders that are known only by their features."""


class ImageTokens(NamedTuple):
    """Tokens of images, in fp32. `mask` is True for valid tokens, and False for padding."""

    tokens: Float[np.ndarray, "B N D"]
    mask: Bool[np.ndarray, "B N"]

    def select(self, keep: Keep) -> "ImageTokens":
        """Return all tokens, or their mean as a single token."""
        if keep == "tokens":
            return self
        return ImageTokens(self.mean()[:, None], np.ones((len(self.tokens), 1), bool))

    def mean(self) -> Float[np.ndarray, "B D"]:
        """Return the mean of the valid tokens of each image."""
        counts = np.maximum(self.mask.sum(axis=1, keepdims=True), 1)
        return (self.tokens * self.mask[..., None]).sum(axis=1) / counts.astype(np.float32)


@runtime_checkable
class VisionEncoder(Protocol):
    """An image encoder with fixed weights. It is thread-safe.

    Attributes:
        info: Description of the encoder.
    """

    info: EncoderInfo

    def encode(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> ImageTokens:
        """Encode images as tokens.

        Args:
            pixels: Images that `info.preprocess` has preprocessed.
        """
        ...

    def write_graph(self, path: Path) -> None:
        """Write the encoder as an ONNX graph that takes uint8 pixels or normalized images. The name `onnx:FILE`
        opens this graph.

        Args:
            path: File to create.

        Raises:
            UserError: If the encoder cannot be written as one file, or a package is missing.
        """
        ...


@runtime_checkable
class EncoderOpener(Protocol):
    """Function that opens encoders. It is an entry point in the group `grr_coca.encoders`, named after its scheme."""

    def __call__(self, rest: str, device: str | None) -> VisionEncoder:
        """Open an encoder.

        Args:
            rest: Rest of the encoder's name, after the scheme and the colon.
            device: Device for PyTorch. By default, CUDA if available, else Apple's MPS, else the CPU.

        Raises:
            UserError: If the encoder is unknown or cannot be used.
        """
        ...


def open_encoder(name: str, device: str | None = None) -> VisionEncoder:
    """Open an image encoder by its name.

    Args:
        name: `timm:NAME`, `hf:NAME`, `onnx:FILE`, or a name with the scheme of another package.
        device: Device for PyTorch. By default, CUDA if available, else Apple's MPS, else the CPU.

    Raises:
        UserError: If the encoder is unknown or cannot be used, or a package is missing.
    """
    scheme, colon, rest = name.partition(":")
    if scheme == GIVEN:
        raise UserError(
            f"{name}: this encoder is not available here, so images cannot be encoded; pass a folder of its features "
            "instead of images"
        )
    opener: EncoderOpener | None = plugins.find("grr_coca.encoders", scheme) if colon else None
    if opener is None:
        schemes = [
            f"{known}:NAME" for known in (*plugins.own("grr_coca.encoders"), *plugins.others("grr_coca.encoders"))
        ]
        raise UserError(f"{name}: unknown image encoder; {suggest_name(name, schemes)}")
    return opener(rest, device)


def open_encoder_from_info(info: EncoderInfo, device: str | None = None) -> VisionEncoder:
    """Open the encoder that a description specifies, and check that it has not changed.

    Args:
        info: Description of the encoder.
        device: See `open_encoder`.

    Raises:
        UserError: If the encoder cannot be opened, or differs from its description.
    """
    encoder = open_encoder(info.name, device)
    if info.preprocess.framing is not None:
        encoder = with_framing(encoder, info.preprocess.framing)
    if encoder.info.digest != info.digest:
        raise UserError(
            f"{info.name}: the weights or preprocessing of this encoder differ from those that computed "
            "the features; compute the features again with `grr-coca data features`"
        )
    return encoder


def make_given_encoder(name: str, embed_dim: int, num_tokens: int | None) -> "GivenEncoder":
    """Return an encoder that is known only by its features.

    Args:
        name: `given:NAME`. Encoders with different names count as different encoders.
        embed_dim: Width of the features.
        num_tokens: Number of tokens per image, or None if this number varies.

    Raises:
        UserError: If the name is empty.
    """
    if not name.removeprefix(f"{GIVEN}:"):
        raise UserError(f"{name}: the name of the encoder is missing; use {GIVEN}:NAME")
    return GivenEncoder(
        EncoderInfo(
            name=name,
            weights=hashlib.sha256(name.encode()).hexdigest(),
            licence=UNKNOWN_LICENCE,
            preprocess=EncoderPreprocess(image_size=feature_side(embed_dim)),
            embed_dim=embed_dim,
            num_tokens=num_tokens,
        )
    )


def open_or_make_given_encoder(info: EncoderInfo) -> VisionEncoder:
    """Open the encoder that a description specifies.

    If this fails, return an encoder that is known only by its features, and log a warning unless the description
    already is that of such an encoder.
    """
    try:
        return open_encoder_from_info(info)
    except UserError as error:
        if not info.name.startswith(f"{GIVEN}:"):
            log.warning("the model takes only features, not images, because its encoder cannot be opened: %s", error)
        return GivenEncoder(info)


def feature_preprocess(encoder: VisionEncoder, keep: Keep = "mean") -> FeaturePreprocess:
    """Return the preprocessing for a model that takes features stored as pixels, and also images if the encoder is
    available.

    Args:
        encoder: Encoder of the features.
        keep: Whether the model takes all tokens of an image, or their mean.
    """
    info, takes_images = encoder.info, not isinstance(encoder, GivenEncoder)
    side = feature_side(info.embed_dim, has_tokens=keep == "tokens")
    own = vars(info.preprocess) if takes_images else {"image_size": side}
    return FeaturePreprocess(**own, encoder=info.name, digest=info.digest, takes_images=takes_images, keep=keep)


@dataclass
class GivenEncoder:
    """Encoder that is known only by its features, and therefore cannot encode images."""

    info: EncoderInfo

    def encode(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> ImageTokens:  # noqa: ARG002
        """Raise `UserError`, because the encoder is not available."""
        raise UserError(
            f"{self.info.name}: this encoder is not available here, so images cannot be encoded; pass a folder of "
            "its features instead of images"
        )

    def write_graph(self, path: Path) -> None:  # noqa: ARG002
        """Raise `UserError`, because the encoder is not available."""
        raise UserError(
            f"{self.info.name}: this encoder is not available here, so it cannot be exported; pass another encoder"
        )


def with_framing(encoder: VisionEncoder, framing: Framing) -> VisionEncoder:
    """Return an encoder that delegates to the given encoder, but whose preprocessing also frames drawings.

    Args:
        encoder: Encoder that computes the tokens. It is not changed.
        framing: Settings for framing drawings.
    """
    preprocess = replace(encoder.info.preprocess, framing=framing)
    return _RedescribedEncoder(encoder, replace(encoder.info, preprocess=preprocess))


@dataclass
class _RedescribedEncoder:
    """Encoder whose description has been replaced."""

    encoder: VisionEncoder
    info: EncoderInfo

    def encode(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> ImageTokens:
        return self.encoder.encode(pixels)

    def write_graph(self, path: Path) -> None:
        self.encoder.write_graph(path)
