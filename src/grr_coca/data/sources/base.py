"""Definitions that all sources share: a pair, the protocol of a source, and the error for bad pairs with its causes."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from grr_coca.common import plugins
from grr_coca.common.errors import UserError
from grr_coca.data.walk import is_raster_name

if TYPE_CHECKING:
    import numpy as np  # lazy import, because subprocesses do not need it

PACK_SUFFIX = ".icons"
"""Suffix of a file that contains all images of a source for which a `SourceReader` is used. The name of each image ends
in `: ` and `SourceImage.inner`.
"""

MAX_TEXT = 2**20
"""Maximum number of bytes of the captions of an image, in a text file or in a shard."""


@dataclass(frozen=True)
class RawPair:
    """A pair as read from its source: the bytes of an image file, and a caption.

    `name` is the location of the pair, for messages. If the image has several captions, `more_captions` contains all
    captions except the first. Pairs of the same image have the same `image_name`; if it is empty, `name` is used
    instead. If `image` encodes features instead of a picture (see `grr_coca.data.feature_image`), `picture` is an image
    to show to users, or None. `features` are image tokens from a frozen encoder, N × X, if they have already been
    computed.
    """

    key: str
    name: str
    image: bytes
    caption: str
    _: KW_ONLY
    more_captions: tuple[str, ...] = ()
    image_name: str = ""
    picture: Path | None = None
    features: "np.ndarray | None" = field(default=None, compare=False)

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions of the image, at least one."""
        return (self.caption, *self.more_captions)


@runtime_checkable
class PairSource(Protocol):
    """Source of pairs, which can be read in any order. Reading a bad pair raises `BadSample`.

    By default, a subclass treats each pair as a separate image.
    """

    def __len__(self) -> int:
        """Return the number of pairs."""
        ...

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair.

        Raises:
            BadSample: If the captions or the image cannot be read. The image is not decoded.
            IndexError: If the index is not below the number of pairs.
        """
        ...

    def caption(self, index: int) -> str:
        """Read the first caption of a pair, without reading the image."""
        return self.captions(index)[0]

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of a pair, without reading the image.

        Raises:
            BadSample: If the captions cannot be read, or the source knows without reading it that the image is missing.
        """
        ...

    def name(self, index: int) -> str:
        """Return the name of a pair, for messages."""
        ...

    def image_name(self, index: int) -> str:
        """Return the name of a pair's image, without reading the image. Pairs of the same image have the same name."""
        return self.name(index)

    def container(self, index: int) -> str:
        """Return the shard, table or folder that contains a pair. Bad pairs are counted per container."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether images are read over a network."""
        return False

    def expect(self, indices: "Sequence[int] | np.ndarray") -> None:  # noqa: ARG002 (only shards have blocks)
        """Prepare for reading the given pairs at about the same time. One of them is read next.

        `indices` are in ascending order. By default, this does nothing.
        """
        return None

    def fetch(self, indices: "Sequence[int] | np.ndarray") -> None:  # noqa: ARG002
        """Prefetch the data that `expect` would read from a remote source. By default, this does nothing.

        Several threads may call this at the same time.
        """
        return None

    def digest_parts(self) -> Iterator[bytes | memoryview]:
        """Yield the input of `source_digest`: everything that determines the pairs and their order.

        Pairs are not read.

        Raises:
            TypeError: If the source cannot provide this input. A run with such a source cannot be resumed.
        """
        raise TypeError(
            f"{type(self).__name__}: pairs of this source have no digest, so a run on them cannot be resumed"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """Image that a `SourceReader` has found: `size` bytes of a file, starting at `offset`.

    Attributes:
        name: Unique name of the image in results.
        inner: Name of the image within its source. Exclusions apply to this name.
        file: File that contains the bytes of the image.
        fields: Additional columns of the image, by name.
        keywords: Keywords of the image in its source.
        problem: Reason why the image is missing. Empty if the image exists.
    """

    name: str
    inner: str
    file: Path
    offset: int
    size: int
    fields: Mapping[str, str]
    keywords: tuple[str, ...]
    problem: str = ""


class SourceReader(Protocol):
    """Reader of pairs and images from another kind of source, such as icon sets.

    Readers are registered as entry points of the group `grr_coca.sources`.
    """

    def owns(self, argument: str) -> bool:
        """Return whether an argument that is not a path, such as `iconify:lucide`, names a source of this reader."""
        ...

    def find_file(self, argument: str) -> Path:
        """Return the file of an argument that `owns` accepts. If necessary, the file is downloaded first.

        Raises:
            UserError: If the source does not exist, or cannot be downloaded.
        """
        ...

    def open(self, argument: str) -> PairSource | None:
        """Open a source of pairs, or return None if the argument is not a source of this reader.

        Raises:
            UserError: If the source is corrupt, or cannot be downloaded.
        """
        ...

    def images(self, argument: str) -> Sequence[SourceImage] | None:
        """Find the images of an argument. Return None if the argument is not a source of this reader.

        Raises:
            UserError: If the source is corrupt, or cannot be downloaded.
        """
        ...

    def pin_version(self, argument: str, fields: Mapping[str, object]) -> str:
        """Return the argument with the version of the source. `fields` are those of an image from that version."""
        ...

    def remove_version(self, argument: str) -> str:
        """Return an argument without its version. The result is the same for all versions of a source."""
        ...


def source_readers(argument: str) -> Iterator[SourceReader]:
    """Yield the readers that may be able to read an argument. For the path of a pixel image, none is yielded.

    Readers from other distributions are yielded only for arguments of the form `SCHEME:…`, because finding these
    readers takes longer than opening a folder.
    """
    if ":" not in argument and is_raster_name(argument):
        return
    yield from plugins.own("grr_coca.sources").values()
    if ":" in argument:
        yield from plugins.others("grr_coca.sources").values()


def reader_that_owns(argument: str) -> SourceReader | None:
    """Return the reader that owns an argument, or None; see `SourceReader.owns`. No reader is imported for a path."""
    if ":" not in argument:
        return None
    return next((reader for reader in source_readers(argument) if reader.owns(argument)), None)


class Cause(StrEnum):
    """Reason why a pair is bad."""

    EMPTY_FILE = "empty file"
    NOT_AN_IMAGE = "not an image"
    BROKEN_IMAGE = "broken or truncated image"
    TOO_LARGE = "too large"
    NO_IMAGE = "no image"
    NO_CAPTION = "no caption"
    EMPTY_CAPTION = "empty caption"
    BAD_TEXT = "text is not UTF-8"
    BAD_RECORD = "broken record"
    DUPLICATE_KEY = "duplicate key"
    CUT_OFF = "cut off by the end of a truncated shard"
    UNREADABLE = "cannot be read"
    FORBIDDEN_PATH = "path leaves the data's folder"
    NOT_INSTALLED = "needs a package that is not installed"


class BadSample(UserError):  # noqa: N818 (the name describes the sample)
    """Error for a pair, or a file of a pair, that cannot be used. The message names the pair or file.

    Attributes:
        cause: Reason why the pair is bad.
        may_lack_memory: Whether the decoder may have reported a lack of memory as a corrupt file.
    """

    def __init__(self, message: str, cause: Cause = Cause.UNREADABLE) -> None:
        # `cause` has a default, because PyTorch passes only the message of a worker's error to the parent process.
        super().__init__(message)
        self.cause = cause
        self.may_lack_memory = False


def require_max_bytes(size: int, limit: int, name: str, fix: str = "make it smaller") -> None:
    """Check the size of a part of a pair.

    Raises:
        BadSample: If the size exceeds the limit. The message contains the name and the fix.
    """
    if size > limit:
        raise BadSample(f"{name}: too many bytes: {size:,} (limit {limit:,}); {fix}", Cause.TOO_LARGE)


SCALE_DOWN = "scale the image down first"
"""Fix in messages about too large images."""


def locate_part(ends: "np.ndarray", index: int) -> tuple[int, int]:
    """Convert the index of a pair in a source with several parts to the index of the part and the index in that part.

    Args:
        ends: For each part, the total number of pairs up to its end.
        index: Index of the pair in the source.

    Raises:
        IndexError: If the index is negative, or not below the number of pairs.
    """
    if not len(ends) or not 0 <= index < ends[-1]:
        raise IndexError(index)
    part = int(ends.searchsorted(index, side="right"))
    return part, index - (int(ends[part - 1]) if part else 0)


class PackedStrings:
    """Fixed list of strings that takes little memory, because it is stored as a block of UTF-8 with offsets."""

    def __init__(self, strings: Iterable[str]) -> None:
        import numpy as np

        content, ends = bytearray(), array("Q")
        for string in strings:
            content += string.encode("utf-8", "surrogatepass")
            ends.append(len(content))
        self._content = bytes(content)
        self._ends = np.array(ends, dtype=np.uint64)

    def buffers(self) -> tuple[bytes, memoryview]:
        """Return all strings as one block of UTF-8, and the end of each string in the block (uint64)."""
        return self._content, self._ends.data

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return self._content[start : int(self._ends[index])].decode("utf-8", "surrogatepass")


def stable_id(text: str) -> int:
    """Return a 63-bit id of a text. The id is the same in every process."""
    content = text.encode("utf-8", "surrogatepass")  # file names that are not UTF-8 contain lone surrogates
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1


def digest_header(source: PairSource) -> bytes:
    """Return the first part of the `digest_parts` of a source: its kind, and its number of pairs."""
    return f"{type(source).__name__} {len(source)} ".encode()


def digest_file(path: Path) -> bytes:
    """Return the part of a digest that describes a file: its name and size, without its folder."""
    return f"{path.name}\0{path.stat().st_size} ".encode("utf-8", "surrogateescape")
