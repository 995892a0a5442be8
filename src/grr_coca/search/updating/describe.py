"""From the bytes of a picture to what the index keeps of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from grr_coca.data.bad import BadSample, Cause
from grr_coca.data.image_files.find import ImageFile
from grr_coca.data.text import writable
from grr_coca.errors import UserError
from grr_coca.search.entry import Entry, Failure, Stamp, digest_of, plain_fields, stamp_of
from grr_coca.search.phash import perceptual_hash
from grr_coca.search.store import Described

if TYPE_CHECKING:
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
