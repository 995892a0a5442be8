"""The model of an index, and how it turns the bytes of an image into an entry: here, or on a Ray cluster.

Shapes: M texts or images, E embedding width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.common.extras import require_extra
from grr_coca.data.image_files import ImageFile, done_ahead
from grr_coca.data.sources.base import BadSample, Cause
from grr_coca.data.text import writable
from grr_coca.infer.load import locate_checkpoint
from grr_coca.infer.on_ray import map_on_ray
from grr_coca.model.checkpoint_files import DEFAULT, fingerprint, shipped_folder
from grr_coca_search.duplicates import look_of, perceptual_hash
from grr_coca_search.entry import Entry, Failure, Header, Photo, Stamp, digest_of, plain_fields, stamp_of
from grr_coca_search.photo import read_photo
from grr_coca_search.relevance import RelevanceCurve, curve_of
from grr_coca_search.store import ImageDescription

if TYPE_CHECKING:
    from grr_coca.data.preprocess import Preprocess
    from grr_coca.infer import Description, ImageTextModel
    from grr_coca.model.checkpoint import Checkpoint


_MAX_TAGS, _MIN_PROBABILITY = 5, 0.2
"""Words that are kept of an image, and how likely they are at least."""


class FoundImage(NamedTuple):
    """An image that was found through the argument `root`. `stamp`: see `stamp_of`."""

    file: ImageFile
    root: str
    stamp: Stamp | None


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A decoded image: the digest of its bytes, its size, its perceptual hash, what its camera and people wrote, and
    `square`, the input of the model.

    If another machine has decoded and described it, `described` says how, and `square` is None.
    """

    found: FoundImage
    digest: str
    width: int
    height: int
    phash: int
    look: bytes
    photo: Photo
    square: Image.Image | None
    described: ImageDescription | None = None


Take = Callable[[Sequence[DecodedImage], list[ImageDescription]], None]
"""Takes a batch of images, and what the model says of each."""


def decode_found(found: FoundImage, preprocess: "Preprocess") -> DecodedImage | Failure:
    """Read and decode an image. The stamp of a separate file is read again, as it may have changed since it was found.
    A member of a shard keeps that of the shard that was opened, as another one in its place has other offsets.

    A failure of the system (a permission, a disk, a missing package, a busy machine) has no stamp, so the next update
    tries it again.
    """
    part = found.file.part
    stamp = stamp_of(found.file) if part is None or part.offset is None else found.stamp
    # A failure keeps the stamp from before reading: a file that was still being written then counts as changed.
    try:
        content = found.file.read()
    except UserError as error:
        is_system_error = isinstance(error.__cause__, OSError)
        return Failure(found.file.name, found.root, None if is_system_error else stamp, writable(str(error)))
    try:
        image = preprocess.decode(content, found.file.name)
    except BadSample as error:
        is_of_system = error.cause in (Cause.NOT_INSTALLED, Cause.UNREADABLE)
        return Failure(found.file.name, found.root, None if is_of_system else stamp, str(error))
    if stamp is None or stamp.size != len(content):
        stamp = Stamp(len(content), 0 if stamp is None else stamp.mtime_ns)
    found = found._replace(stamp=stamp)
    return DecodedImage(
        found=found,
        digest=digest_of(content),
        width=image.width,
        height=image.height,
        phash=perceptual_hash(image),
        look=look_of(image),
        photo=read_photo(found.file, content),
        square=preprocess.square(image),
    )


def make_entry(decoded: DecodedImage, described: ImageDescription) -> Entry:
    """The entry of a decoded image.

    Raises:
        UserError: two columns of its table get the same name.
    """
    file, root, stamp = decoded.found
    span = file.span
    assert stamp is not None
    return Entry(
        name=file.name,
        root=root,
        file="" if span is None else str(span.file),
        offset=None if span is None else span.offset,
        stamp=stamp,
        digest=decoded.digest,
        phash=decoded.phash,
        look=decoded.look,
        width=decoded.width,
        height=decoded.height,
        caption=described.caption,
        fields=plain_fields(file.fields()),
        photo=decoded.photo,
        certainty=described.certainty,
        tags=described.tags,
    )


def _describe_squares(model: "ImageTextModel", squares: Sequence[Image.Image]) -> list[ImageDescription]:
    """Caption, embedding and tags of each square, from one forward pass."""
    described = model.describe_many(list(squares), batch_size=max(1, len(squares)))
    return [
        ImageDescription(
            " ".join(one.captions[0].text.split()), one.embedding, one.certainties[0], _tags_of(model, one)
        )
        for one in described
    ]


def _tags_of(model: "ImageTextModel", described: "Description") -> tuple[str, ...]:
    """Likely words of an image, if the model has tags.

    They are taken from one caption, where `caption --tags` has five: beams would make an index take several times as
    long, and add little (nDCG@5 0.45 instead of 0.42).
    """
    if not model.has_tags or described.unfamiliar:
        return ()
    found = model.tagger.tags(described.embedding, described.captions, _MAX_TAGS)
    return tuple(tag.text for tag in found if tag.probability >= _MIN_PROBABILITY)


class IndexModel:
    """The model of an index, found by its name and loaded at first use.

    Raises:
        UserError: there is no such model.
    """

    def __init__(self, name: str, batch_size: int = 32, engine: str = "auto") -> None:
        self.folder = locate_checkpoint(name)
        # A name by which other processes find it too: that of a shipped model, or an absolute path. For a run, the path
        # of its newest checkpoint, because later checkpoints have other embeddings.
        is_name = shipped_folder(name) == self.folder or not Path(name).exists()
        self.name = name if is_name else str(self.folder.resolve())
        self.batch_size = batch_size
        self.engine = engine
        self._sampled: tuple[tuple[str, ...], np.ndarray] = ((), np.empty((0, 0), np.float32))

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of its files. This does not load the model."""
        return fingerprint(self.folder)

    @cached_property
    def loaded(self) -> "ImageTextModel":
        """The loaded model."""
        from grr_coca.infer.load import load  # late: it imports an engine

        model = load(self.folder, engine=self.engine)
        model.warn_if_unfit()  # an index uses both its embeddings and its captions
        return model

    @cached_property
    def checkpoint(self) -> "Checkpoint":
        """The model in PyTorch, for heat maps.

        Raises:
            UserError: PyTorch is not installed, or the model is one in int8.
        """
        require_extra("torch", "a heat map")
        from grr_coca.model.checkpoint import from_pretrained

        return from_pretrained(self.folder)

    @property
    def header(self) -> Header:
        """The header of an index of this model."""
        return Header(self.name, self.fingerprint, self.loaded.engine.embed_dim)

    @cached_property
    def curve(self) -> RelevanceCurve | None:
        """The curve of its relevances; None if there is none.

        Raises:
            UserError: the file with its numbers is damaged.
        """
        return curve_of(self.folder, self.loaded.config)

    def read(self, found: Iterator[FoundImage], batch_size: int) -> Iterator[list[DecodedImage | Failure]]:
        """Read and decode images in the background."""
        preprocess = self.loaded.preprocess
        return done_ahead(found, lambda one: decode_found(one, preprocess), batch_size)

    def describe(self, batches: Iterable[Sequence[DecodedImage]], take: Take) -> None:
        """Caption and embedding of each image, from one forward pass."""
        model = self.loaded

        def work(batch: Sequence[DecodedImage]) -> tuple[Sequence[DecodedImage], list[ImageDescription]]:
            squares = [one.square for one in batch if one.square is not None]
            return batch, _describe_squares(model, squares)

        model.map_batches(batches, work, lambda done: take(*done))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts, M E.

        Raises:
            UserError: a text is empty.
        """
        return self.loaded.embed_texts(list(texts))

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Embeddings of captions, M E. An empty caption gives zeros."""
        vectors = np.zeros((len(captions), self.loaded.engine.embed_dim), np.float32)
        places = [place for place, caption in enumerate(captions) if caption.strip()]
        if places:
            vectors[places] = self.embed_texts([captions[place] for place in places])
        return vectors

    def embed_sample(self, captions: tuple[str, ...]) -> np.ndarray:
        """`embed_captions` with a cache of the last result, as successive queries have the same sample of a library."""
        if captions != self._sampled[0]:
            self._sampled = (captions, self.embed_captions(captions))
        return self._sampled[1]

    def describe_images(self, images: Sequence[Image.Image | Path | str]) -> list[tuple[str, np.ndarray]]:
        """Caption and embedding of each image.

        Raises:
            UserError: an image cannot be read.
        """
        described = self.loaded.describe_many(list(images))
        return [(one.captions[0].text, one.embedding) for one in described]

    def embed_images(self, images: Sequence[Image.Image | Path | str]) -> np.ndarray:
        """Embeddings of images, M E.

        Raises:
            UserError: an image cannot be read.
        """
        return self.loaded.embed_images(list(images))

    def require(self, header: Header, location: str) -> None:
        """Raise an error if an index was made with another model, or with another version of this one.

        Raises:
            UserError: the message names both models, or says how to make the index anew.
        """
        if header.fingerprint == self.fingerprint:
            return
        if header.model == self.name:
            named = "" if self.name == DEFAULT else f" -c {self.name}"
            raise UserError(
                f"{location}: made with another version of the model '{self.name}' ({header.fingerprint[:8]}, now "
                f"{self.fingerprint[:8]}), whose embeddings are not comparable; make it anew: delete it, then "
                f"`grr-coca index IMAGES --out {location}{named}`"
            )
        raise UserError(
            f"{location}: an index of the model '{header.model}' ({header.fingerprint[:8]}), and not of "
            f"'{self.name}' ({self.fingerprint[:8]}), whose embeddings are not comparable; search it with its own "
            "model, or make another index with --out"
        )


class RayDescriber:
    """A `Describer` that reads and describes images on a Ray cluster. The calling process alone writes the index.

    Args:
        folder: the checkpoint, a folder that every machine can read.
        engine: as in `grr_coca.load`.
    """

    def __init__(self, folder: Path, engine: str = "auto") -> None:
        self._folder = folder
        self._engine = engine

    def read(self, found: Iterator[FoundImage], batch_size: int) -> Iterator[list[DecodedImage | Failure]]:
        """Read, decode and describe images on the workers."""
        return map_on_ray(
            found, attrgetter("file.name"), partial(_worker, self._folder.absolute(), self._engine), batch_size
        )

    def describe(self, batches: Iterable[Sequence[DecodedImage]], take: Take) -> None:
        """What the workers have already computed."""
        for batch in batches:
            take(batch, [one.described for one in batch if one.described is not None])


def _worker(folder: Path, engine: str) -> Callable[[Sequence[FoundImage]], list[DecodedImage | Failure]]:
    from grr_coca.infer.load import load

    model = load(folder, engine=engine)
    preprocess = model.preprocess

    def work(batch: Sequence[FoundImage]) -> list[DecodedImage | Failure]:
        read = [decode_found(found, preprocess) for found in batch]
        squares = [one.square for one in read if isinstance(one, DecodedImage) and one.square is not None]
        described = iter(_describe_squares(model, squares))
        return [
            one if isinstance(one, Failure) else replace(one, square=None, described=next(described)) for one in read
        ]

    return work
