"""Start model, from which a base was fine-tuned. Its image embedding is an additional feature of an adapted model.

In cross-validation on three domains, the features of both models together gave higher recall than those of only the
fine-tuned model (`benchmarks/own_pairs.md`). The folder of the adapted model contains a copy of the start model.

Shapes: B images, S image size of the base in pixels.
"""

import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from grr_coca.common.errors import NOTES, UserError
from grr_coca.common.files import MANIFEST, atomic_folder, read_json
from grr_coca.common.shapes import UInt8
from grr_coca.data.features import EncoderInfo
from grr_coca.data.preprocess import EncoderPreprocess
from grr_coca.infer.encoder import UNKNOWN_LICENCE, ImageTokens
from grr_coca.infer.engine.base import SMALL_MODEL
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.checkpoint_files import (
    FILES,
    GRAPH_FILES,
    START_FILE,
    WEIGHTS,
    fingerprint,
    is_adapted,
    read_files,
    start_of_run,
)
from grr_coca.model.hub import find_start

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
        """Raise an error; see `VisionEncoder`. The model is copied instead."""
        raise UserError(f"{self.info.name}: a model, which is copied as a folder")

    def copy_to(self, folder: Path) -> None:
        """Copy the files of the start model, including its graphs, if any.

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
    large model.

    Args:
        base: Fine-tuned checkpoint in its run folder.
        load: Function that loads a model.
    """
    run = base.parent.parent
    start = start_of_run(run)
    if start is None:
        if (run / START_FILE).is_file():
            NOTES.warning("%s: its start model is gone or has changed; adapted without it", run)
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
