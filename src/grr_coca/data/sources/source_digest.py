"""A digest of a source, by which a run that goes on knows its pairs again."""

import hashlib
from collections.abc import Iterator

from grr_coca.data.sources.folder import ImageFolder
from grr_coca.data.sources.listed import ListedPairs
from grr_coca.data.sources.pairs import PairSource
from grr_coca.data.sources.shards.source import TarShards
from grr_coca.data.sources.views import Chain, EveryCaption, Subset


def source_digest(source: PairSource) -> str:
    """A digest of what the order of a source depends on: which pairs are taken, and the names and sizes of the files.

    No pair is read, so that tens of millions take less than a second. Of a folder of images, names alone count. Where
    the files lie does not count. Checkpoints hold such digests: if anything else is hashed here, older runs are
    refused.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(source):
        digest.update(part)
    return digest.hexdigest()


def _parts(source: PairSource) -> Iterator[bytes | memoryview]:
    yield f"{type(source).__name__} {len(source)} ".encode()
    if isinstance(source, Subset):
        yield source.indices.data
        yield from _parts(source.source)
    elif isinstance(source, Chain):
        for part in source.sources:
            yield from _parts(part)
    elif isinstance(source, EveryCaption):
        yield from _parts(source.source)
    elif isinstance(source, ImageFolder):
        yield from source.names.buffers()
    elif isinstance(source, TarShards | ListedPairs):
        for path in source.paths if isinstance(source, TarShards) else [source.listing]:
            yield f"{path.name}\0{path.stat().st_size} ".encode("utf-8", "surrogateescape")
