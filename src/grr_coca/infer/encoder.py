"""Image encoders of others: pixels to tokens. Packages beside the core provide them by scheme, such as `timm:NAME`.

Shapes: B images, S image size in pixels, N tokens, D width.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from grr_coca.common import plugins
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError, nearest
from grr_coca.common.shapes import Bool, Float, UInt8
from grr_coca.data.preprocess import EncoderPreprocess

UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """Description of an image encoder.

    Attributes:
        name: Its name for `open_encoder`.
        weights: SHA-256 of its weights, in hexadecimal digits.
        licence: Licence of its weights in the words of the Hugging Face hub; `unknown` if nothing states it.
        preprocess: Its preprocessing.
        embed_dim: Width of its tokens, D.
        num_tokens: Tokens of an image, N.
    """

    name: str
    weights: str
    licence: str
    preprocess: EncoderPreprocess
    embed_dim: int
    num_tokens: int

    @property
    def digest(self) -> str:
        """A hash of all that tokens depend on. Equal encoders have equal digests, whatever their name."""
        content = {**to_dict(self), "name": "", "licence": ""}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class ImageTokens(NamedTuple):
    """Tokens of images, in fp32. `mask`: True for tokens that count."""

    tokens: Float[np.ndarray, "B N D"]
    mask: Bool[np.ndarray, "B N"]

    def mean(self) -> Float[np.ndarray, "B D"]:
        """Return the mean of the tokens of each image that count."""
        counts = np.maximum(self.mask.sum(axis=1, keepdims=True), 1)
        return (self.tokens * self.mask[..., None]).sum(axis=1) / counts.astype(np.float32)


@runtime_checkable
class VisionEncoder(Protocol):
    """An image encoder whose weights are fixed. Several threads can use it at once.

    Attributes:
        info: Description.
    """

    info: EncoderInfo

    def encode(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> ImageTokens:
        """Encode images.

        Args:
            pixels: From `info.preprocess`.
        """
        ...


@runtime_checkable
class EncoderOpener(Protocol):
    """Function of an entry point of the group `grr_coca.encoders`, whose name is the scheme."""

    def __call__(self, rest: str, device: str | None) -> VisionEncoder:
        """Open an encoder.

        Args:
            rest: Its name after the scheme.
            device: Where PyTorch computes it; None: CUDA, else Apple's MPS, else the CPU.

        Raises:
            UserError: Unknown encoder, or it cannot be used.
        """
        ...


def open_encoder(name: str, device: str | None = None) -> VisionEncoder:
    """Open an image encoder by its name.

    Args:
        name: `timm:NAME`, `hf:NAME`, `onnx:FILE`, or a name with the scheme of another package.
        device: Where PyTorch computes it; None: CUDA, else Apple's MPS, else the CPU.

    Raises:
        UserError: Unknown encoder, a package is missing, or the encoder cannot be used.
    """
    scheme, colon, rest = name.partition(":")
    opener: EncoderOpener | None = plugins.named("grr_coca.encoders", scheme) if colon else None
    if opener is None:
        schemes = [
            f"{known}:NAME" for known in (*plugins.own("grr_coca.encoders"), *plugins.others("grr_coca.encoders"))
        ]
        raise UserError(f"{name}: unknown image encoder; {nearest(name, schemes)}")
    return opener(rest, device)
