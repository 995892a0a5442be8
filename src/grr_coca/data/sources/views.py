"""Views of sources, such as a subset or a chain, and functions that process all pairs of a source."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from grr_coca.common.shapes import Int
from grr_coca.data.isolated import check_image
from grr_coca.data.sources.base import BadSample, PairSource, RawPair, digest_header, locate_part, stable_id
from grr_coca.data.sources.folder import ImageFolder
from grr_coca.data.sources.shards import TarShards
from grr_coca.data.tokenizer import clean_caption


class View(PairSource):
    """Source whose pairs come from other sources.

    A subclass implements `_locate`, and overrides the methods whose result is not that of the located pair.

    Attributes:
        sources: All sources of the view's pairs.
    """

    sources: Sequence[PairSource]

    @abstractmethod
    def _locate(self, index: int) -> tuple[PairSource, int]:
        """Return the source of a pair, and the index of the pair in that source."""

    @property
    def is_remote(self) -> bool:
        """Whether images are read over a network."""
        return any(source.is_remote for source in self.sources)

    def digest_parts(self) -> Iterator[bytes | memoryview]:
        """Yield the digest parts of all sources."""
        yield digest_header(self)
        for source in self.sources:
            yield from source.digest_parts()

    def expect(self, indices: Sequence[int] | np.ndarray) -> None:
        """Prepare for reading the given pairs at about the same time."""
        for source, inner in self._by_source(indices):
            source.expect(inner)

    def fetch(self, indices: Sequence[int] | np.ndarray) -> None:
        """Prefetch the data that `expect` would read from remote sources."""
        for source, inner in self._by_source(indices):
            source.fetch(inner)

    def _by_source(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[PairSource, list[int]]]:
        """Yield the source of each run of pairs, with the sorted, distinct indices of these pairs in that source."""
        located = (self._locate(int(index)) for index in indices)
        for _, group in groupby(located, key=lambda found: id(found[0])):
            found = list(group)
            yield found[0][0], sorted({inner for _, inner in found})

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        source, inner = self._locate(index)
        return source[inner]

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of a pair."""
        source, inner = self._locate(index)
        return source.captions(inner)

    def name(self, index: int) -> str:
        """Return the name of a pair, for messages."""
        source, inner = self._locate(index)
        return source.name(inner)

    def image_name(self, index: int) -> str:
        """Return the name of the image of a pair."""
        source, inner = self._locate(index)
        return source.image_name(inner)

    def container(self, index: int) -> str:
        """Return the shard, table or folder of a pair."""
        source, inner = self._locate(index)
        return source.container(inner)


class Subset(View):
    """Some of a source's pairs, in the order of `indices`."""

    def __init__(self, source: PairSource, indices: Sequence[int] | np.ndarray) -> None:
        self.source, self.sources = source, (source,)
        self.indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def digest_parts(self) -> Iterator[bytes | memoryview]:
        """Yield the indices of the pairs, and the digest parts of the source."""
        yield digest_header(self)
        yield self.indices.data
        yield from self.source.digest_parts()

    def _locate(self, index: int) -> tuple[PairSource, int]:
        return self.source, int(self.indices[index])


class Chain(View):
    """Several sources, whose pairs follow each other in the order of the sources."""

    def __init__(self, sources: Sequence[PairSource]) -> None:
        self.sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of pairs in each source."""
        return tuple(len(source) for source in self.sources)

    def _locate(self, index: int) -> tuple[PairSource, int]:
        number, inner = locate_part(self._ends, index)
        return self.sources[number], inner


class EveryCaption(View):
    """Source in which each caption of an image is a separate pair. The pairs of an image are consecutive.

    This view is for evaluation, in which all captions contribute to the losses. The pairs of an image share an image
    id. In retrieval, each caption of an image is therefore a correct answer, and the pairs of an image are not
    negatives of each other.
    """

    def __init__(self, source: PairSource) -> None:
        self.source, self.sources = source, (source,)
        counts = [num_captions(source, index) for index in range(len(source))]
        self._ends = np.cumsum(np.asarray(counts, dtype=np.int64))
        self._last: tuple[int, RawPair] | None = None

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair. If several pairs of an image are read in succession, the image is read only once."""
        image, caption = locate_part(self._ends, index)
        if self._last is None or self._last[0] != image:
            self._last = image, self.source[image]
        pair = self._last[1]
        return replace(pair, caption=pair.captions[caption], more_captions=())

    def captions(self, index: int) -> tuple[str, ...]:
        """Read the caption of a pair."""
        image, caption = locate_part(self._ends, index)
        return (self.source.captions(image)[caption],)

    def _locate(self, index: int) -> tuple[PairSource, int]:
        return self.source, locate_part(self._ends, index)[0]


def every_caption(source: PairSource) -> PairSource:
    """Return the source with each caption as a separate pair, or the source itself if no image has several captions.

    All captions are read.
    """
    view = EveryCaption(source)
    return source if len(view) == len(source) else view


def split_valid_pairs(source: PairSource) -> tuple[list[int], list[BadSample]]:
    """Return the indices of all pairs that can be read and decoded, and the errors of all other pairs.

    Evaluation stops at a bad pair, because scores on a smaller split would not be comparable. Validation during a long
    run must not stop, so it uses the valid pairs, and reports the number of excluded pairs.

    Args:
        source: Source of the pairs. All captions are read, and each image is read and decoded once.
    """
    valid, bad = [], []
    image_errors: dict[str, BadSample | None] = {}
    for index in range(len(source)):
        try:
            read_valid_captions(source, index)
            image = source.image_name(index)
            if image not in image_errors:
                image_errors[image] = _find_image_error(source, index)
            if (found := image_errors[image]) is not None:
                raise found
            valid.append(index)
        except BadSample as error:
            bad.append(error)
    return valid, bad


def _find_image_error(source: PairSource, index: int) -> BadSample | None:
    try:
        pair = source[index]
        check_image(pair.image, pair.name)
    except BadSample as error:
        return error
    return None


def read_valid_pair(source: PairSource, index: int) -> RawPair:
    """Read one pair, and check that its image can be decoded and that its captions are valid texts.

    Raises:
        BadSample: If the pair cannot be read, its image cannot be decoded, or a caption is empty or not UTF-8.
    """
    pair = source[index]
    for caption in pair.captions:
        clean_caption(caption, pair.name)
    check_image(pair.image, pair.name)
    return pair


def read_valid_captions(source: PairSource, index: int) -> tuple[str, ...]:
    """Read and check the captions of a pair, without changing them or reading the image.

    Raises:
        BadSample: If the captions cannot be read, or a caption is empty or not UTF-8.
    """
    captions, name = source.captions(index), source.name(index)
    for caption in captions:
        clean_caption(caption, name)
    return captions


def caption_texts(source: PairSource, limit: int | None = None) -> Iterator[str]:
    """Yield all captions of a source, cleaned for training a tokenizer. Bad pairs are skipped.

    Args:
        source: Source of the pairs. Images are not read.
        limit: Maximum number of pairs whose captions are read. These pairs are evenly spaced. None means all pairs.
    """
    count = len(source) if limit is None else min(limit, len(source))
    for number in range(count):
        index = number * len(source) // count
        try:
            captions = [clean_caption(caption, source.name(index)) for caption in source.captions(index)]
        except BadSample:
            continue
        yield from captions


def num_captions(source: PairSource, index: int) -> int:
    """Return the number of captions of a pair, or 1 if the captions cannot be read.

    In the latter case, the error is raised when the pair is read.
    """
    try:
        return len(source.captions(index))
    except BadSample:
        return 1


def image_numbers(source: PairSource) -> Int[np.ndarray, " N"]:
    """Return the number of each pair's image. Images are numbered in the order of their first pairs."""
    if isinstance(source, TarShards | ImageFolder):
        return np.arange(len(source))  # each pair has a separate image; comparing millions of names would take minutes
    ids = np.fromiter((stable_id(source.image_name(index)) for index in range(len(source))), np.int64, len(source))
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return first.argsort().argsort()[inverse]


class ByImage:
    """Pairs of a source, grouped by image. Item `i` is the list of the indices of all pairs of image `i`."""

    def __init__(self, source: PairSource) -> None:
        self.source = source
        numbers = image_numbers(source)
        self._pairs = numbers.argsort(kind="stable")
        self._ends = np.bincount(numbers).cumsum()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, image: int) -> list[int]:
        start = int(self._ends[image - 1]) if image else 0
        return self._pairs[start : int(self._ends[image])].tolist()


def source_digest(source: PairSource) -> str:
    """Return a digest of the selection and order of the pairs, so that a resumed run recognizes its data.

    The digest depends on the names and sizes of files, but not on the path of their folder. For an image folder, it
    depends only on the names, and for remote shards, on the names and contents. No pair is read, so computing the
    digest of tens of millions of pairs takes less than a second. Checkpoints contain such digests, so a change of this
    function would make older runs unusable.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in source.digest_parts():
        digest.update(part)
    return digest.hexdigest()
