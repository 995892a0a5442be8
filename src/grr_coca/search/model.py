"""The model of an index: found by its name, and loaded when something has to be described or embedded.

Shapes: M texts or pictures, E embedding width.

From the bytes of a picture to what the index keeps of it.

Describes pictures of an index on a Ray cluster. One process, the one that asked, writes the index.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from grr_coca.checkpoint_files import fingerprint
from grr_coca.data.bad import BadSample, Cause
from grr_coca.data.image_files import ImageFile, done_ahead
from grr_coca.data.text import writable
from grr_coca.errors import UserError
from grr_coca.inference.locate import locate_checkpoint
from grr_coca.inference.on_ray import map_on_ray
from grr_coca.registry import shipped_folder
from grr_coca.search.entry import Entry, Failure, Header, Stamp, digest_of, plain_fields, stamp_of
from grr_coca.search.phash import perceptual_hash
from grr_coca.search.store import Described

if TYPE_CHECKING:
    from PIL import Image

    from grr_coca.data.preprocess import Preprocess
    from grr_coca.inference import ImageTextModel

Describe = Callable[[Sequence["DecodedPicture"]], list[tuple[str, np.ndarray]]]
"""A function that gives the caption and embedding of each picture."""


class Found(NamedTuple):
    """A picture that was found by the argument `root`. `stamp`: see `stamp_of`."""

    file: ImageFile
    root: str
    stamp: Stamp | None


@dataclass(frozen=True, kw_only=True)
class DecodedPicture:
    """A picture that was read: its digest, its size in pixels, its hash, and the square that the model sees.

    `said`: its caption and embedding, in place of the square, if it was described on the machine that read it.
    """

    found: Found
    digest: str
    width: int
    height: int
    phash: int
    square: Image.Image | None
    said: tuple[str, np.ndarray] | None = None


def decode_found(found: Found, preprocess: "Preprocess") -> DecodedPicture | Failure:
    """Read and decode a picture. Its stamp is taken anew: it may have been written since it was found.

    A failure of the system (a permission, a disk, a missing package) has no stamp, so the picture is tried again.
    """
    stamp = stamp_of(found.file)
    # A failure has the stamp from before: a file that was still being written has another one when it is whole.
    try:
        content = found.file.read()
    except UserError as error:
        is_of_system = isinstance(error.__cause__, OSError)
        return Failure(found.file.name, found.root, None if is_of_system else stamp, writable(str(error)))
    try:
        image = preprocess.decode(content, found.file.name)
    except BadSample as error:
        is_package = error.cause is Cause.NOT_INSTALLED
        return Failure(found.file.name, found.root, None if is_package else stamp, str(error))
    if stamp is None or stamp.size != len(content):
        stamp = Stamp(len(content), 0 if stamp is None else stamp.mtime_ns)
    found = found._replace(stamp=stamp)
    return DecodedPicture(
        found=found,
        digest=digest_of(content),
        width=image.width,
        height=image.height,
        phash=perceptual_hash(image),
        square=preprocess.square(image),
    )


def make_entry(decoded: DecodedPicture, caption: str) -> Entry:
    """The entry of a decoded picture.

    Raises:
        UserError: two columns of its table cannot be told apart.
    """
    file, root, stamp = decoded.found
    assert stamp is not None
    return Entry(
        name=file.name,
        root=root,
        file="" if file.span is None else str(file.span.file),
        offset=None if file.span is None else file.span.offset,
        stamp=stamp,
        digest=decoded.digest,
        phash=decoded.phash,
        width=decoded.width,
        height=decoded.height,
        caption=caption,
        fields=plain_fields(file.fields()),
    )


def describe_squares(model: "ImageTextModel", squares: Sequence[Image.Image]) -> list[tuple[str, np.ndarray]]:
    """Caption and embedding of each square, from one forward pass."""
    described = model.describe_many(list(squares), batch_size=max(1, len(squares)))
    return [(" ".join(one.captions[0].text.split()), one.embedding.numpy()) for one in described]


def from_twin(decoded: DecodedPicture, twin: Described) -> tuple[Entry, np.ndarray]:
    """The entry of a picture whose bytes have been described under another name."""
    return make_entry(decoded, twin.caption), twin.embedding


class RayDescriber:
    """Reads and describes pictures where the workers are.

    Args:
        folder: the checkpoint, a folder that every machine sees.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, found: Iterator[Found], batch_size: int) -> Iterator[list[DecodedPicture | Failure]]:
        """Pictures with what the model says of them."""
        return map_on_ray(found, partial(_worker, self._folder), batch_size)

    def describe(self, decoded: Sequence[DecodedPicture]) -> list[tuple[str, np.ndarray]]:
        """Captions and embeddings, which the workers computed already."""
        return [one.said for one in decoded if one.said is not None]


def _worker(folder: Path) -> Callable[[Sequence[Found]], list[DecodedPicture | Failure]]:
    from grr_coca.inference.model import load

    model = load(folder)
    preprocess = model.checkpoint.preprocess

    def work(batch: Sequence[Found]) -> list[DecodedPicture | Failure]:
        read = [decode_found(found, preprocess) for found in batch]
        squares = [one.square for one in read if isinstance(one, DecodedPicture) and one.square is not None]
        said = iter(describe_squares(model, squares) if squares else [])
        return [one if isinstance(one, Failure) else replace(one, square=None, said=next(said)) for one in read]

    return work


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
