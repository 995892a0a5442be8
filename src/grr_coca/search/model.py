"""The model of an index: found by its name, and loaded when something has to be described or embedded.

Shapes: M texts or pictures, E embedding width.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grr_coca.checkpoint_files import fingerprint
from grr_coca.data.image_files.decode import done_ahead
from grr_coca.errors import UserError
from grr_coca.inference.locate import locate_checkpoint
from grr_coca.registry import shipped_folder
from grr_coca.search.entry import Failure, Header
from grr_coca.search.updating.describe import DecodedPicture, Found, decode_found, describe_squares

if TYPE_CHECKING:
    from PIL import Image

    from grr_coca.inference import ImageTextModel


class IndexModel:
    """A checkpoint by name, loaded when it is first needed.

    Raises:
        UserError: there is no such checkpoint.
    """

    def __init__(self, name: str, batch_size: int = 32) -> None:
        self.folder = locate_checkpoint(name)
        # The name by which other processes find it too: that of a shipped model, or an absolute path; of a run, that of
        # its newest checkpoint, as the run goes on to others.
        is_name = shipped_folder(name) == self.folder or not Path(name).exists()
        self.name = name if is_name else str(self.folder.resolve())
        self.batch_size = batch_size
        self._sampled: tuple[tuple[str, ...], np.ndarray] = ((), np.empty((0, 0), np.float32))

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of its files. The model is not loaded for it."""
        return fingerprint(self.folder)

    @cached_property
    def loaded(self) -> "ImageTextModel":
        """The model itself."""
        from grr_coca.inference.model import load  # late: torch comes with it

        model = load(self.folder)
        model.warn_if_unfit()  # an index is for search, and takes its embeddings with the captions
        return model

    @property
    def header(self) -> Header:
        """The header of an index of this model."""
        return Header(self.name, self.fingerprint, self.loaded.checkpoint.config.embed_dim)

    def read(self, found: Iterator[Found], batch_size: int) -> Iterator[list[DecodedPicture | Failure]]:
        """Pictures decoded in the background."""
        preprocess = self.loaded.checkpoint.preprocess
        return done_ahead(found, lambda one: decode_found(one, preprocess), batch_size)

    def describe(self, decoded: Sequence[DecodedPicture]) -> list[tuple[str, np.ndarray]]:
        """Caption and embedding of each picture, from one forward pass."""
        return describe_squares(self.loaded, [one.square for one in decoded if one.square is not None])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts, M E.

        Raises:
            UserError: a text is empty.
        """
        return self.loaded.embed_texts(list(texts)).numpy()

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Embeddings of captions, M E; zeros for an empty one."""
        vectors = np.zeros((len(captions), self.loaded.checkpoint.config.embed_dim), np.float32)
        places = [place for place, caption in enumerate(captions) if caption.strip()]
        if places:
            vectors[places] = self.embed_texts([captions[place] for place in places])
        return vectors

    def embed_sample(self, captions: tuple[str, ...]) -> np.ndarray:
        """`embed_captions` for the sample of a library. Each query has the same sample, so the last result is kept."""
        if captions != self._sampled[0]:
            self._sampled = (captions, self.embed_captions(captions))
        return self._sampled[1]

    def describe_images(self, images: "Sequence[Image.Image | Path | str]") -> list[tuple[str, np.ndarray]]:
        """Caption and embedding of each picture.

        Raises:
            UserError: a picture cannot be read.
        """
        described = self.loaded.describe_many(list(images))
        return [(one.captions[0].text, one.embedding.numpy()) for one in described]

    def embed_images(self, images: "Sequence[Image.Image | Path | str]") -> np.ndarray:
        """Embeddings of pictures, M E.

        Raises:
            UserError: a picture cannot be read.
        """
        return self.loaded.embed_images(list(images)).numpy()

    def require(self, header: Header, location: str) -> None:
        """Make sure that an index is of this model.

        Raises:
            UserError: it is of another model; the message names both.
        """
        if header.fingerprint != self.fingerprint:
            raise UserError(
                f"{location}: an index of the model '{header.model}' ({header.fingerprint[:8]}), and not of "
                f"'{self.name}' ({self.fingerprint[:8]}), whose embeddings mean something else; search it with its own "
                "model, or make another index with --out"
            )
