"""Turns the bytes of an image into an entry of an index: here, or on a Ray cluster."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.data.image_files import ImageFile
from grr_coca.data.sources.base import BadSample, Cause
from grr_coca.data.text import writable
from grr_coca.infer.on_ray import map_on_ray
from grr_coca_search.duplicates import look_of, perceptual_hash
from grr_coca_search.entry import Entry, Failure, Photo, Stamp, digest_of, plain_fields, stamp_of
from grr_coca_search.photo import read_photo
from grr_coca_search.store import ImageDescription

if TYPE_CHECKING:
    from grr_coca.data.preprocess import Preprocess
    from grr_coca.infer import Description, ImageTextModel


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

    If another machine has decoded and described it, `described` is the result, and `square` is None.
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
"""Takes a batch of images and their descriptions."""


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


def describe_squares(model: "ImageTextModel", squares: Sequence[Image.Image]) -> list[ImageDescription]:
    """Return caption, embedding and tags of each square, from one forward pass."""
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


class RayDescriber:
    """A `Describer` that reads and describes images on a Ray cluster. Only the calling process writes the index.

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
        """Yield the results that workers have already computed."""
        for batch in batches:
            take(batch, [one.described for one in batch if one.described is not None])


def _worker(folder: Path, engine: str) -> Callable[[Sequence[FoundImage]], list[DecodedImage | Failure]]:
    from grr_coca.infer.load import load

    model = load(folder, engine=engine)
    preprocess = model.preprocess

    def work(batch: Sequence[FoundImage]) -> list[DecodedImage | Failure]:
        read = [decode_found(found, preprocess) for found in batch]
        squares = [one.square for one in read if isinstance(one, DecodedImage) and one.square is not None]
        described = iter(describe_squares(model, squares))
        return [
            one if isinstance(one, Failure) else replace(one, square=None, described=next(described)) for one in read
        ]

    return work
