"""Third-party image encoder that an adapted model uses next to its base, or in place of it.

Pixels come from the preprocessing of the encoder. If the encoder is used next to the base, the base gets the same
pixels, framed and scaled to its own image size. The mean token of an image, minus the mean of the domain, is then an
additional descriptor of fixed length. If the encoder is used in place of the base, the pixels may hold features
(`grr_coca.data.feature_image`), and the base embeds only texts.

The start model, from which a base was fine-tuned, takes the base's own pixels. Its image embedding is the descriptor.
In cross-validation on three domains, the features of both models together gave higher recall than those of only the
fine-tuned model (`benchmarks/own_pairs.md`). The folder of the adapted model contains a copy of the start model.

Shapes: B images, S image size of the encoder in pixels, X width of the encoder, T tokens.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import NOTES, UserError
from grr_coca.common.files import MANIFEST, atomic_folder, read_json
from grr_coca.common.shapes import Float, UInt8
from grr_coca.data.feature_image import features_of_pixels
from grr_coca.data.features import EncoderInfo, FeatureCache, FeatureHeader, read_feature_header
from grr_coca.data.preprocess import EncoderPreprocess, Framing, Preprocess
from grr_coca.data.sources.feature_pairs import PAIRS, is_feature_folder, require_same_features
from grr_coca.infer.adapted.adaptation import read_adapted_header, read_arrays
from grr_coca.infer.adapted.descriptors import unit
from grr_coca.infer.encoder import (
    GIVEN,
    UNKNOWN_LICENCE,
    GivenEncoder,
    ImageTokens,
    VisionEncoder,
    feature_preprocess,
    open_encoder,
    open_encoder_from_info,
    open_or_make_given_encoder,
    with_framing,
)
from grr_coca.infer.engine.base import SMALL_MODEL, EncodedImages, Engine, WrappedEngine
from grr_coca.infer.export.encoder_graph import write_encoder_files
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.checkpoint_files import (
    ENCODER_FILES,
    FILES,
    GRAPH_FILES,
    START_FILE,
    START_MODEL,
    WEIGHTS,
    CheckpointFiles,
    fingerprint,
    is_adapted,
    read_encoder_in_place,
    read_files,
    read_keep,
    start_of_run,
)
from grr_coca.model.hub import find_start

ENCODER, ENCODER_MEAN, ENCODER_GRAPH = ENCODER_FILES
_SHARE, _SHARE_OF_BASE = 2.25, 1.0
"""Squared length of the encoder's descriptor. `_SHARE` applies next to the base: it is the squared length of all other
descriptors together. `_SHARE_OF_BASE` applies in place of the base and for its start model: it is the squared length of
the base's embedding. In place of the base, values from 0.25 to 1 are equally good over three of the folds of
`benchmarks/encoders.py`; at 5.5, recall at 1 is 4 points lower."""


LoadModel = Callable[[Path], ImageTextModel]
"""Type of `grr_coca.infer.load.load`, which is passed as an argument, because the module of `load` imports adapted
models."""


class StartEncoder:
    """A `grr_coca.infer.encoder.VisionEncoder` whose only token is the image embedding of a start model.

    Args:
        folder: Folder of the start model. The model is loaded when the first image is encoded, because a search by text
            does not need the model.
        info: Description of the encoder, with the preprocessing of the base.
        load: Function that loads the start model.
    """

    def __init__(self, folder: Path, info: EncoderInfo, load: LoadModel) -> None:
        self.folder, self.info, self._load = folder, info, load

    @cached_property
    def _model(self) -> ImageTextModel:
        return self._load(self.folder)

    def encode(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> ImageTokens:
        """Encode images; see `VisionEncoder`. Pixels are scaled if the base has another image size."""
        preprocess = self._model.preprocess
        if pixels.shape[1] != preprocess.image_size:
            pixels = np.stack([preprocess(Image.fromarray(square)) for square in pixels])
        embedding = self._model.engine.encode_images(pixels).embedding
        return ImageTokens(embedding[:, None], np.ones((len(embedding), 1), bool))

    def write_graph(self, path: Path) -> None:  # noqa: ARG002
        """Raise `UserError`, because a start model is copied with `copy_to` and never written as a graph."""
        raise UserError(f"{self.info.name}: a start model cannot be written as one graph; copy its folder instead")

    def copy_to(self, folder: Path) -> None:
        """Copy the files of the start model, including its graphs, if any, to a new folder.

        Raises:
            OSError: If the disk is full or cannot be written to.
        """
        facts = {}
        if (self.folder / MANIFEST).is_file():
            facts = {key: value for key, value in read_json(self.folder / MANIFEST).items() if key != "files"}
        with atomic_folder(folder, facts) as partial:
            for name in (*FILES, *GRAPH_FILES):
                if (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, partial / name)


def find_start_encoder(base: Path, load: LoadModel) -> StartEncoder | None:
    """Return the start model of a fine-tuned checkpoint, as an encoder.

    Return None if the start model is unknown, missing or changed, if the start model or the base takes features,
    if the start model is adapted, or if its weights have 32 MB or more, because every image would then need a second
    large model. If the start model is missing or changed, this is also logged.

    Args:
        base: Fine-tuned checkpoint in its run folder.
        load: Function that loads a model.

    Raises:
        UserError: If a file of the start model or of the base is corrupt.
    """
    run = base.parent.parent
    start = start_of_run(run)
    if start is None:
        if (run / START_FILE).is_file():
            NOTES.warning("%s: the start model of this run is missing or has changed; its features are not used", run)
        return None
    files, of_base = read_files(start), read_files(base)
    takes_features = files.encoder is not None or of_base.encoder is not None
    if takes_features or is_adapted(start) or (start / WEIGHTS).stat().st_size >= SMALL_MODEL:
        return None
    known = find_start(base)
    return StartEncoder(
        start,
        EncoderInfo(
            name=start.name if known is None else known.name,
            weights=fingerprint(start),
            licence=known.card.licence if known is not None and known.card is not None else UNKNOWN_LICENCE,
            preprocess=EncoderPreprocess(**vars(of_base.preprocess)),
            embed_dim=files.config.embed_dim,
            num_tokens=1,
        ),
        load,
    )


class MeanTokenDescriptor:
    """Descriptor of images: the mean of an image's tokens from an image encoder, minus the mean of the domain.

    Args:
        encoder: Image encoder.
        mean: Mean of the domain, X. None if unknown.
        cache: Features that have already been computed.
        is_in_place: Whether the encoder replaces the base for images, in which case pixels may contain features.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        mean: Float[np.ndarray, " X"] | None = None,
        cache: FeatureCache | None = None,
        *,
        is_in_place: bool = False,
    ) -> None:
        self.encoder, self.mean, self.cache, self.is_in_place = encoder, mean, cache, is_in_place

    def mean_tokens(
        self, pixels: UInt8[np.ndarray, "B S S 3"], digests: Sequence[bytes] = ()
    ) -> Float[np.ndarray, "B X"]:
        """Return the mean token of each image, from the cache, from features in the pixels, or else from the encoder.

        If the encoder is known only by its features, the mean token of an image without features is zero.

        Args:
            pixels: Pixels from the preprocessing of the encoder.
            digests: SHA-256 of each image file, with which cached features are looked up. If empty, the cache is not
                used.
        """
        found = np.zeros((len(pixels), self.encoder.info.embed_dim), np.float32)
        is_known = np.zeros(len(pixels), bool)
        for row, digest in enumerate(digests if self.cache is not None else ()):
            assert self.cache is not None
            number = self.cache.find(digest)
            known = None if number is None else self.cache.mean(number)
            if known is not None:
                found[row], is_known[row] = known, True
        for row, image in enumerate(pixels if self.is_in_place else ()):
            known = features_of_pixels(image)
            if known is not None:
                found[row], is_known[row] = known, True
        # If the encoder is known only by its features, nothing is encoded: the preprocessing has already rejected all
        # images except the black one that a server sends when it starts.
        if not is_known.all() and not isinstance(self.encoder, GivenEncoder):
            found[~is_known] = self.encoder.encode(pixels[~is_known]).mean()
        return found

    def scale(self, mean_tokens: Float[np.ndarray, "B X"]) -> Float[np.ndarray, "B X"]:
        """Convert mean tokens to descriptors, by subtracting the mean of the domain and scaling the result."""
        assert self.mean is not None
        share = _SHARE_OF_BASE if self.is_start or self.is_in_place else _SHARE
        return (np.float32(np.sqrt(share)) * unit(mean_tokens - self.mean)).astype(np.float32)

    @property
    def is_start(self) -> bool:
        """Whether the encoder is the start model of the base, which takes the same pixels as the base."""
        return isinstance(self.encoder, StartEncoder)

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of images, and also of features if features can be given in place of images."""
        return feature_preprocess(self.encoder) if self.is_in_place else self.encoder.info.preprocess


class SquareImageEngine(WrappedEngine):
    """Engine of a base model that takes the square images from another encoder's preprocessing.

    Args:
        base: Engine of the base.
        preprocess: Preprocessing of the base.
    """

    def __init__(self, base: Engine, preprocess: Preprocess) -> None:
        super().__init__(base)
        self.preprocess = preprocess

    @property
    def workers(self) -> int:
        """Number of workers: 1, because the encoder uses all cores for one batch."""
        return 1

    def encode_images(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> EncodedImages:
        """Encode images; see `Engine`."""
        return self.base.encode_images(np.stack([self.preprocess(Image.fromarray(image)) for image in pixels]))


class TextOnlyEngine(WrappedEngine):
    """Engine of a base model that embeds only texts. Image embeddings are zeros."""

    def encode_images(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> EncodedImages:
        """Encode images; see `Engine`."""
        return EncodedImages(np.zeros((len(pixels), self.embed_dim), np.float32), None)


def take_encoder_pixels(
    files: CheckpointFiles, engine: Engine, descriptor: MeanTokenDescriptor
) -> tuple[CheckpointFiles, Engine]:
    """Return the files and the engine of a base model, changed to take the pixels of an encoder.

    If the encoder is the start model, which takes the same pixels as the base, nothing is changed.

    Args:
        files: Files of the base, or its checkpoint.
        engine: Engine of the base.
        descriptor: The encoder as a descriptor.
    """
    if descriptor.is_start:
        return files, engine
    of_squares = TextOnlyEngine(engine) if descriptor.is_in_place else SquareImageEngine(engine, files.preprocess)
    return replace(files, preprocess=descriptor.preprocess), of_squares


def open_extra_encoder(name: str, framing: Framing | None) -> MeanTokenDescriptor:
    """Open an encoder for an adaptation.

    Args:
        name: Name of an encoder, or a folder with its features, as written by `grr-coca data features`.
        framing: Settings with which the base frames drawings. Unless `name` is a folder of features, drawings are
            framed in the same way for the encoder.

    Raises:
        UserError: If the encoder cannot be used.
    """
    if is_feature_folder(Path(name)):
        cache = FeatureCache(Path(name))
        return MeanTokenDescriptor(open_encoder_from_info(cache.header.encoder), cache=cache)
    encoder = open_encoder(name)
    return MeanTokenDescriptor(encoder if framing is None else with_framing(encoder, framing))


def open_start(base: Path, load: LoadModel) -> MeanTokenDescriptor | None:
    """Return the start model of a fine-tuned base as a descriptor, or None; see `find_start_encoder`."""
    encoder = find_start_encoder(base, load)
    return None if encoder is None else MeanTokenDescriptor(encoder)


def open_replacing_encoder(header: FeatureHeader) -> MeanTokenDescriptor:
    """Open the encoder of features, in order to adapt a model to the features instead of images.

    If the encoder cannot be opened here, only its features can be used.
    """
    return MeanTokenDescriptor(open_or_make_given_encoder(header.encoder), is_in_place=True)


def write_extra_encoder(descriptor: MeanTokenDescriptor, folder: Path, images: UInt8[np.ndarray, "B S S 3"]) -> str:
    """Write an encoder and its domain mean to the folder of an adapted model.

    If possible, the encoder is written as a graph; otherwise, only its description is written. A start model is copied.

    Args:
        descriptor: The encoder as a descriptor, with its mean.
        folder: Folder of the model.
        images: Sample images for choosing the precision of the graph.

    Returns:
        One line that describes the graph, or states why it was not written. Empty for a start model, and for an encoder
        that is known only by its features.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    from safetensors.numpy import save

    line = ""
    if isinstance(descriptor.encoder, StartEncoder):
        descriptor.encoder.copy_to(folder / START_MODEL)
        described = json.dumps(to_dict(descriptor.encoder.info), indent=1, ensure_ascii=False)
        (folder / ENCODER).write_bytes(described.encode())
    else:
        line = write_encoder_files(descriptor.encoder, folder / ENCODER, folder / ENCODER_GRAPH, images)
    (folder / ENCODER_MEAN).write_bytes(save({"mean": np.ascontiguousarray(descriptor.mean, np.float32)}))
    return line


def read_extra_encoder(folder: Path, load: LoadModel, *, is_in_place: bool) -> MeanTokenDescriptor | None:
    """Read the encoder of an adapted model, or return None if the model has no such encoder.

    Args:
        folder: Folder of the model.
        load: Function that loads a model.
        is_in_place: See `MeanTokenDescriptor`.

    Raises:
        UserError: If a file is corrupt, or the encoder is missing or has changed.
    """
    info = read_encoder_info(folder)
    if info is None:
        return None
    mean = read_encoder_mean(folder)
    graph, start = folder / ENCODER_GRAPH, folder / START_MODEL
    encoder: VisionEncoder
    if start.is_dir():
        encoder = StartEncoder(start, info, load)
    elif graph.is_file():
        encoder = open_encoder(f"onnx:{graph}")
    elif is_in_place:
        encoder = open_or_make_given_encoder(info)
    else:
        encoder = open_encoder_from_info(info)
    if mean.shape != (encoder.info.embed_dim,):
        raise UserError(f"{folder / ENCODER_MEAN}: does not match {ENCODER}; run `grr-coca adapt` again")
    return MeanTokenDescriptor(encoder, mean, is_in_place=is_in_place)


def require_same_input(folder: Path, arguments: Sequence[str], *, as_pairs: bool) -> None:
    """Check that a model takes the kind of input that the arguments of a command specify: images or features.

    The arguments and the errors are those of `grr_coca.infer.load.require_input`, which calls this function only if
    features may be involved.
    """
    expected = _replaced_image_encoder(folder)
    keep = "mean" if expected is None or is_adapted(folder) else read_keep(folder)
    for argument in arguments:
        found = read_feature_header(Path(argument)) if is_feature_folder(Path(argument)) else None
        if found is not None and expected is None:
            raise UserError(
                f"{argument}: features of {found.encoder.name}, but {folder} encodes images; pass the images, or "
                f"{Path(argument, PAIRS)} if the images are still at the paths in that file"
            )
        if found is not None and expected is not None and found.keep != keep:
            # Commands for images compute the mean from all tokens, if the tokens come from an encoder that runs here.
            is_computable = keep == "mean" and not as_pairs and found.encoder.digest == expected.digest
            if found.encoder.weights == expected.weights and not is_computable:
                raise UserError(
                    f"{argument}: contains features of the kind '{found.keep}', but {folder} takes '{keep}'; compute "
                    f"the features again with --keep {keep}"
                )
        if found is not None or (expected is not None and expected.name.startswith(f"{GIVEN}:")):
            require_same_features(argument, found, expected, str(folder))


def replacing_encoder(folder: Path) -> EncoderInfo | None:
    """Return the image encoder whose features a model takes, or None if the model takes no features.

    Raises:
        UserError: If a file is corrupt.
    """
    return _replaced_image_encoder(folder) or read_files(folder).encoder


def takes_pixels(folder: Path) -> bool:
    """Return whether a model encodes images itself. A model that was adapted to features does not.

    Raises:
        UserError: If a file is corrupt.
    """
    return not is_adapted(folder) or read_adapted_header(folder).split[1] > 0


def _replaced_image_encoder(folder: Path) -> EncoderInfo | None:
    """Return the encoder whose features a model takes in place of images, or None if the model takes images."""
    if not is_adapted(folder):
        return read_encoder_in_place(folder)
    return None if takes_pixels(folder) else read_encoder_info(folder)


def read_encoder_info(folder: Path) -> EncoderInfo | None:
    """Read the description of an adapted model's encoder, or return None if the model has no encoder.

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
    return np.asarray(read_arrays(folder / ENCODER_MEAN).get("mean", ()), np.float32)
