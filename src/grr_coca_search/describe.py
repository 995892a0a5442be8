"""Convert image bytes to index entries, on this machine or on a Ray cluster."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.common.files import open_regular
from grr_coca.data.image_files import ImageFile
from grr_coca.data.isolated import Answer, call_helpers
from grr_coca.data.sources.base import BadSample, Cause
from grr_coca.data.tokenizer import replace_surrogates
from grr_coca.infer.on_ray import map_on_ray
from grr_coca_search.entry import Entry, Failure, Photo, Stamp, digest_of, plain_fields, stamp_of
from grr_coca_search.fields import PHOTO_FIELDS, READER_VERSION
from grr_coca_search.photo import MAX_METADATA_BYTES, ImageMetadata, one_line, read_xmp
from grr_coca_search.store import ImageDescription, PhotoUpdate

if TYPE_CHECKING:
    from grr_coca.data.preprocess import Preprocess
    from grr_coca.infer import Description, ImageTextModel


FACTS = "grr_coca_search.picture_facts"
"""Module that helper processes import to extract facts from images."""
_MAX_KEYWORDS = 200
_MAX_TAGS, _MIN_PROBABILITY = 5, 0.2
"""Maximum number of tags per image, and the minimum probability of a tag."""


class FoundImage(NamedTuple):
    """Image file that was found through the argument `root`. For `stamp`, which may be None, see `stamp_of`."""

    file: ImageFile
    root: str
    stamp: Stamp | None


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """Decoded image.

    Attributes:
        found: The image file. Its stamp is not None.
        digest: Digest of the bytes; see `digest_of`.
        width, height: Size in pixels.
        phash: Perceptual hash; see `perceptual_hash`.
        pixel_signature: Small copy; see `compute_pixel_signature`.
        photo: Metadata of the image file and its XMP files.
        square: Input of the model. None if another machine has already described the image.
        described: Description by another machine. None if the image has not been described yet.
    """

    found: FoundImage
    digest: str
    width: int
    height: int
    phash: int
    pixel_signature: bytes
    photo: Photo
    square: Image.Image | None
    described: ImageDescription | None = None


Take = Callable[[Sequence[DecodedImage], list[ImageDescription]], None]
"""Function that receives a batch of images and their descriptions, in the same order."""


def decode_found(found: Sequence[FoundImage], preprocess: "Preprocess") -> Iterator[DecodedImage | Failure]:
    """Read and decode images, and yield them in order. An image that cannot be read or decoded becomes a `Failure`.

    Images with equal bytes are decoded once.

    The stamp of a separate file is read again, because the file may have changed since it was found. A member of a
    shard keeps the stamp from the time when the shard was opened: if another file has replaced the shard since then,
    the member's offset may have become invalid.

    If the system is the reason why an image cannot be read (permissions, a disk error, a missing package, a busy
    machine), the failure has no stamp, so that the next update tries to read the image again.
    """
    read: deque[_ReadImage] = deque()  # images that were read, but are not decoded yet

    def contents() -> Iterator[tuple[bytes | UserError, str]]:
        digests: set[str] = set()
        for one in found:
            part = one.file.part
            # The stamp is read before the content, so that the next update treats a file that is still being written
            # as changed.
            stamp = stamp_of(one.file) if part is None or part.offset is None else one.stamp
            content = one.file.read_or_error()
            size, digest = (0, "") if isinstance(content, UserError) else (len(content), digest_of(content))
            read.append(_ReadImage(one._replace(stamp=stamp), digest, size, digest in digests))
            if digest not in digests:
                yield content, one.file.name
            if digest:
                digests.add(digest)

    answers: dict[str, Answer] = {}  # by digest

    def copies() -> Iterator[DecodedImage | Failure]:
        while read and read[0].is_copy:
            image = read.popleft()
            if image.digest in answers:
                yield _decoded(image, answers[image.digest], preprocess)
            else:  # the message about a file that cannot be decoded contains its name
                yield from decode_found([image.found], preprocess)

    for answer in call_helpers("described", contents(), module=FACTS, preprocess=preprocess):
        yield from copies()
        image = read.popleft()
        if isinstance(answer, UserError):
            yield _failure(image.found, answer)
        else:
            answers[image.digest] = answer
            yield _decoded(image, answer, preprocess)
    yield from copies()


class _ReadImage(NamedTuple):
    """Image whose file was read, with the digest and the number of its bytes.

    `is_copy` is True if an earlier image of the same call has the same bytes. Such an image is not decoded again.
    """

    found: FoundImage
    digest: str
    size: int
    is_copy: bool


def _decoded(image: _ReadImage, answer: Answer, preprocess: "Preprocess") -> DecodedImage:
    stamp, (facts, pixels) = image.found.stamp, answer
    if stamp is None or stamp.size != image.size:
        stamp = Stamp(image.size, 0 if stamp is None else stamp.mtime_ns)
    return DecodedImage(
        found=image.found._replace(stamp=stamp),
        digest=image.digest,
        width=int(facts["size"][0]),
        height=int(facts["size"][1]),
        phash=int(facts["phash"]),
        pixel_signature=bytes.fromhex(facts["look"]),
        photo=photo_of(image.found.file, facts["found"]),
        square=preprocess.to_square(facts, pixels),
    )


def _failure(found: FoundImage, error: UserError) -> Failure:
    is_of_system = isinstance(error.__cause__, OSError) or (
        isinstance(error, BadSample) and error.cause in (Cause.NOT_INSTALLED, Cause.UNREADABLE)
    )
    stamp = None if is_of_system else found.stamp
    return Failure(found.file.name, found.root, stamp, replace_surrogates(str(error)))


def read_metadata(found: Sequence[FoundImage]) -> Iterator[PhotoUpdate | None]:
    """Yield the current metadata and hashes of each image, in order, or None if the image cannot be read or decoded."""
    contents = ((one.file.read_or_error(), one.file.name) for one in found)
    for one, answer in zip(found, call_helpers("described", contents, module=FACTS), strict=True):
        if isinstance(answer, UserError):
            yield None
            continue
        facts, _ = answer
        photo = photo_of(one.file, facts["found"])
        yield PhotoUpdate(one.file.name, photo, int(facts["phash"]), bytes.fromhex(facts["look"]))


def make_entry(decoded: DecodedImage, described: ImageDescription) -> Entry:
    """Create the index entry of a decoded image with its caption, confidence and tags.

    Raises:
        UserError: If two columns of the table that lists the image get the same field name.
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
        pixel_signature=decoded.pixel_signature,
        width=decoded.width,
        height=decoded.height,
        caption=described.caption,
        fields=plain_fields(file.fields()),
        photo=decoded.photo,
        caption_confidence=described.caption_confidence,
        tags=described.tags,
    )


def describe_decoded(model: "ImageTextModel", batch: Sequence[DecodedImage]) -> list[ImageDescription]:
    """Return the description of each image that has a `square`, in order.

    All captions and embeddings are computed in one batch. Images with equal bytes are described once.
    """
    squares = {one.digest: one.square for one in batch if one.square is not None}
    described = model.describe_many(list(squares.values()), batch_size=max(1, len(squares)))
    by_digest = {
        digest: ImageDescription(
            " ".join(one.captions[0].text.split()), one.embedding, one.caption_confidences[0], tags
        )
        for digest, one, tags in zip(squares, described, _tags_of(model, described), strict=True)
    }
    return [by_digest[one.digest] for one in batch if one.square is not None]


def _tags_of(model: "ImageTextModel", described: Sequence["Description"]) -> list[tuple[str, ...]]:
    """Return the likely tags of each image: at most `_MAX_TAGS`, each with a probability of at least
    `_MIN_PROBABILITY`.

    An image that is unlike the training images (`unfamiliar`) gets no tags. If the model does not have tags, no image
    gets any.

    The tags are based on a single caption per image, whereas the command `caption --tags` uses five. Generating five
    captions by beam search would make indexing several times slower for little gain (an nDCG@5 of 0.45 instead of
    0.42).
    """
    familiar = [one for one in described if not one.unfamiliar]
    if not model.has_tags or not familiar:
        return [()] * len(described)
    embeddings = np.stack([one.embedding for one in familiar])
    found = iter(model.tagger.tags(embeddings, [one.captions for one in familiar], _MAX_TAGS, _MIN_PROBABILITY))
    return [() if one.unfamiliar else tuple(tag.text for tag in next(found)) for one in described]


class RayDescriber:
    """`Describer` that reads and describes images on a Ray cluster. Only the calling process writes to the index.

    Args:
        folder: Folder of the checkpoint, which every machine must be able to read.
        engine: See `grr_coca.load`.
    """

    def __init__(self, folder: Path, engine: str = "auto") -> None:
        self._folder = folder
        self._engine = engine

    def read(self, found: Iterator[FoundImage], batch_size: int) -> Iterator[list[DecodedImage | Failure]]:
        """Yield batches of images that the workers have read, decoded and described. A failed image is a `Failure`.

        Raises:
            UserError: If Ray is not installed, the cluster cannot be reached, or a worker cannot load the model.
        """
        return map_on_ray(
            found, attrgetter("file.name"), partial(_worker, self._folder.absolute(), self._engine), batch_size
        )

    def describe(self, batches: Iterable[Sequence[DecodedImage]], take: Take) -> None:
        """Pass the descriptions that the workers have already computed to `take`."""
        for batch in batches:
            take(batch, [one.described for one in batch if one.described is not None])


def _worker(folder: Path, engine: str) -> Callable[[Sequence[FoundImage]], list[DecodedImage | Failure]]:
    from grr_coca.infer.load import load

    model = load(folder, engine=engine)
    preprocess = model.preprocess

    def work(batch: Sequence[FoundImage]) -> list[DecodedImage | Failure]:
        read = list(decode_found(batch, preprocess))
        described = iter(describe_decoded(model, [one for one in read if isinstance(one, DecodedImage)]))
        return [
            one if isinstance(one, Failure) else replace(one, square=None, described=next(described)) for one in read
        ]

    return work


# --- Metadata in an image file, and in the XMP files next to it


def photo_of(file: ImageFile, from_file: Sequence[ImageMetadata]) -> Photo:
    """Combine the metadata of an image file, of the XMP files next to it, and of its icon set.

    A field in an XMP file takes precedence over the same field in the image file. Keywords from all sources are
    combined, without repetition, and at most `_MAX_KEYWORDS` of them are kept.

    Args:
        file: The image.
        from_file: Metadata that a helper process found in the image file, in order of precedence.
    """
    # The state is recorded before the XMP files are read, so that a file that changes in between is read again later.
    sidecars = sidecar_state(file)
    from_sidecars = [] if sidecars == READER_VERSION else list(map(_read_sidecar, sidecar_paths(file)))
    # The value of a field is from the first source that has the field. The keywords of all sources are kept.
    by_precedence = [*reversed(from_sidecars), *from_file]
    known = {
        name: next((one[name] for one in by_precedence if one.get(name) is not None), None) for name in PHOTO_FIELDS
    }
    keywords = [word for one in (*from_file, *from_sidecars) for word in one.get("keywords", ())]
    return Photo(
        fields={name: value for name, value in known.items() if value is not None},
        keywords=_unique([*keywords, *file.keywords]),
        sidecars=sidecars,
    )


def sidecar_paths(file: ImageFile) -> list[str]:
    """Return the paths of the XMP files that may belong to an image, in order of increasing precedence.

    For `NAME.jpg`, these are `NAME.xmp`, which Lightroom and Adobe Bridge write, and `NAME.jpg.xmp`, which darktable
    and digiKam write. The files need not exist. The list is empty if the image is not a separate file.
    """
    return [] if file.source is not None else [f"{os.path.splitext(file.name)[0]}.xmp", f"{file.name}.xmp"]  # noqa: PTH122


def sidecar_state(file: ImageFile) -> int:
    """Return a number that changes if the size or time of an image's XMP file, or `READER_VERSION`, changes.

    If the image has no XMP file, the number is `READER_VERSION`.
    """
    found = []
    for place, path in enumerate(sidecar_paths(file)):
        try:
            status = os.stat(path)  # noqa: PTH116 (each update does this for each image)
        except (OSError, ValueError):
            continue
        found.append((place, status.st_size, status.st_mtime_ns))
    if not found:
        return READER_VERSION
    return int.from_bytes(blake2b(repr((READER_VERSION, found)).encode(), digest_size=7).digest())


def _read_sidecar(sidecar: str) -> ImageMetadata:
    try:
        with open_regular(Path(sidecar)) as file:
            if os.fstat(file.fileno()).st_size > MAX_METADATA_BYTES:
                return {}
            return read_xmp(file.read())
    except (OSError, ValueError):
        return {}


def _unique(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, map(one_line, texts))))[:_MAX_KEYWORDS]
