"""An additional image encoder next to the base of an adapted model.

Pixels come from the preprocessing of the encoder. The base gets them framed and scaled to its own size. The
mean token of an image, less the mean of the domain, is one more descriptor of fixed length.

Shapes: B images, S image size of the encoder in pixels, X width of the encoder, T tokens.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json
from grr_coca.common.shapes import Float, UInt8
from grr_coca.data.features import HEADER, EncoderInfo, FeatureCache
from grr_coca.data.preprocess import Framing, Preprocess
from grr_coca.infer.adapted.descriptors import unit
from grr_coca.infer.encoder import VisionEncoder, framed, open_described, open_encoder
from grr_coca.infer.engine.base import EncodedImages, Engine
from grr_coca.infer.engine.wrapped import WrappedEngine
from grr_coca.model.checkpoint_files import ENCODER_FILES, CheckpointFiles

ENCODER, ENCODER_MEAN, ENCODER_GRAPH = ENCODER_FILES
_SHARE = 2.25
"""Squared length of this descriptor. The others have 2.25 together, and the base's embedding has 1."""
_COPIED = frozenset(
    ("unknown", "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "unlicense", "isc")
)
"""Licences of weights that are copied into the folder of a model. Others are referenced by name, and must be available
where the model is used. Weights of unknown licence are files of the user."""


class EncoderDescriptor:
    """The mean token of an image as a descriptor.

    Args:
        encoder: Encoder.
        mean: Mean of the domain, X; None: not known yet.
        cache: Features that were already computed.
    """

    def __init__(
        self, encoder: VisionEncoder, mean: Float[np.ndarray, " X"] | None = None, cache: FeatureCache | None = None
    ) -> None:
        self.encoder, self.mean, self.cache = encoder, mean, cache

    def mean_tokens(
        self, pixels: UInt8[np.ndarray, "B S S 3"], digests: Sequence[bytes] = ()
    ) -> Float[np.ndarray, "B X"]:
        """Return the mean token of images.

        Args:
            pixels: From the preprocessing of the encoder.
            digests: SHA-256 of the file of each image, to find features that were already computed.
        """
        found = np.zeros((len(pixels), self.encoder.info.embed_dim), np.float32)
        is_known = np.zeros(len(pixels), bool)
        if self.cache is not None:
            for row, digest in enumerate(digests):
                number = self.cache.find(digest)
                known = None if number is None else self.cache.mean(number)
                if known is not None:
                    found[row], is_known[row] = known, True
        if not is_known.all():
            found[~is_known] = self.encoder.encode(pixels[~is_known]).mean()
        return found

    def scale(self, mean_tokens: Float[np.ndarray, "B X"]) -> Float[np.ndarray, "B X"]:
        """Return the descriptors of mean tokens."""
        assert self.mean is not None
        return (np.float32(np.sqrt(_SHARE)) * unit(mean_tokens - self.mean)).astype(np.float32)


class EngineOfSquares(WrappedEngine):
    """The engine of a base for square images from another preprocessing.

    Args:
        base: Engine of the base.
        preprocess: Preprocessing of the base.
    """

    def __init__(self, base: Engine, preprocess: Preprocess) -> None:
        super().__init__(base)
        self.preprocess = preprocess

    @property
    def workers(self) -> int:
        """One: the encoder computes a batch on all cores."""
        return 1

    def encode_images(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> EncodedImages:
        """As in `Engine`."""
        return self.base.encode_images(np.stack([self.preprocess(Image.fromarray(image)) for image in pixels]))


def parts_beside(files: CheckpointFiles, engine: Engine, encoder: VisionEncoder) -> tuple[CheckpointFiles, Engine]:
    """Return the files and the engine of a base model that takes the pixels of an encoder.

    Args:
        files: Files of the base, or its checkpoint.
        engine: Engine of the base.
        encoder: Encoder.
    """
    return replace(files, preprocess=encoder.info.preprocess), EngineOfSquares(engine, files.preprocess)


def open_beside(name: str, framing: Framing | None) -> EncoderDescriptor:
    """Open an encoder for an adaptation.

    Args:
        name: Name of an encoder, or a folder with its features (`grr-coca data features`).
        framing: How the base frames drawings. An encoder without features gets them framed, too.

    Raises:
        UserError: If the encoder cannot be used.
    """
    if (Path(name) / HEADER).is_file():
        cache = FeatureCache(Path(name))
        return EncoderDescriptor(open_described(cache.header.encoder), cache=cache)
    encoder = open_encoder(name)
    return EncoderDescriptor(encoder if framing is None else framed(encoder, framing))


def write_beside(descriptor: EncoderDescriptor, folder: Path) -> str:
    """Write an encoder into the folder of an adapted model: as a graph, or else by its name.

    Returns:
        The reason why no graph was written; empty if it was.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    from safetensors.numpy import save

    info, reason = descriptor.encoder.info, ""
    if info.licence in _COPIED:
        try:
            descriptor.encoder.write_graph(folder / ENCODER_GRAPH)
            info = replace(info, name=name_without_folders(info.name))
        except UserError as error:
            (folder / ENCODER_GRAPH).unlink(missing_ok=True)
            reason = str(error)
    else:
        reason = f"its licence is {info.licence}"
    (folder / ENCODER).write_bytes(json.dumps(to_dict(info), indent=1, ensure_ascii=False).encode())
    (folder / ENCODER_MEAN).write_bytes(save({"mean": np.ascontiguousarray(descriptor.mean, np.float32)}))
    return reason


def name_without_folders(name: str) -> str:
    """Return the name of an encoder with only the last part of local paths."""
    parts = re.split("([:=@])", name)
    return "".join(Path(part).name if len(part) > 1 and Path(part).exists() else part for part in parts)


def read_beside(folder: Path) -> EncoderDescriptor | None:
    """Read the encoder of an adapted model; None if it has none.

    Raises:
        UserError: If a file is corrupt, or the encoder is missing or has changed.
    """
    info = read_encoder_info(folder)
    if info is None:
        return None
    mean = read_encoder_mean(folder)
    graph = folder / ENCODER_GRAPH
    encoder = open_encoder(f"onnx:{graph}") if graph.is_file() else open_described(info)
    if mean.shape != (encoder.info.embed_dim,):
        raise UserError(f"{folder / ENCODER_MEAN}: does not match {ENCODER}; run grr-coca adapt again")
    return EncoderDescriptor(encoder, mean)


def read_encoder_info(folder: Path) -> EncoderInfo | None:
    """Read the description of the encoder of an adapted model; None if it has none.

    Raises:
        UserError: If the file is corrupt.
    """
    if not (folder / ENCODER).is_file():
        return None
    return from_dict(EncoderInfo, read_json(folder / ENCODER), str(folder / ENCODER))


def read_encoder_mean(folder: Path) -> Float[np.ndarray, " X"]:
    """Read the domain mean of an adapted model's encoder.

    Raises:
        UserError: If the file is missing or corrupt.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return np.asarray(load_file(folder / ENCODER_MEAN)["mean"], np.float32)
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder / ENCODER_MEAN}: missing or corrupt ({error}); run grr-coca adapt again") from error
