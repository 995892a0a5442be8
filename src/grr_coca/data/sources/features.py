"""Pairs with features of their images, written by `grr-coca data features`.

Features are read by position: image i of a source is row i of its cache. The SHA-256 of the image's file is compared,
so that no image has the features of another image.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from grr_coca.common.errors import UserError
from grr_coca.data.features import EncoderInfo, FeatureCache, Keep
from grr_coca.data.sources.base import BadSample, PairSource, RawPair
from grr_coca.data.sources.feature_pairs import is_feature_folder
from grr_coca.data.sources.views import View, image_numbers, source_digest


class WithFeatures(View):
    """The pairs of a source, with features of their images.

    Args:
        source: All pairs of a source, as `open_source` returns them.
        cache: Features of its images.

    Raises:
        UserError: If the cache belongs to other images.
    """

    def __init__(self, source: PairSource, cache: FeatureCache) -> None:
        if cache.header.source != source_digest(source):
            raise UserError(f"{cache.folder}: has features of other images than those of {source.place(0)}")
        self.source, self.cache = source, cache
        self._numbers = image_numbers(source)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair.

        Raises:
            BadSample: If the pair cannot be read, or could not be read when the features were computed.
            UserError: If the image has changed since then.
        """
        pair, number = self.source[index], int(self._numbers[index])
        features = self.cache.tokens(number)
        if features is None:
            raise BadSample(f"{pair.name}: has no features in {self.cache.folder}")
        if hashlib.sha256(pair.image).digest() != self.cache.digest(number):
            raise UserError(
                f"{self.cache.folder}: has the features of another image than {pair.name}; compute them again in a new "
                "folder"
            )
        return replace(pair, features=features)

    def digest_parts(self) -> Iterator[bytes | memoryview]:
        """Yield the parts of the source."""
        return self.source.digest_parts()

    def _locate(self, index: int) -> tuple[PairSource, int]:
        return self.source, index

    def _sources(self) -> Sequence[PairSource]:
        return (self.source,)


def with_features(source: PairSource, folders: Sequence[str]) -> PairSource:
    """Return the pairs of a source with their features from one of several folders.

    Args:
        source: All pairs of a source.
        folders: Folders with features of one encoder, each of another source.

    Raises:
        UserError: If no folder has features of these images, or the features are of another encoder or preprocessing.
    """
    first = open_features(folders[0])
    caches = [first, *(open_features(folder, first.header.encoder, first.header.keep) for folder in folders[1:])]
    digest = source_digest(source)
    for cache in caches:
        if cache.header.source == digest:
            return WithFeatures(source, cache)
    raise UserError(
        f"{', '.join(folders)}: no features of the images of {source.place(0)}; write them with grr-coca data features"
    )


def open_features(folder: str, info: EncoderInfo | None = None, keep: Keep | None = None) -> FeatureCache:
    """Open a folder of features, which must be those of a model.

    Args:
        folder: Folder.
        info: Frozen encoder of the model; None: any.
        keep: The features that the model takes; None: any.

    Raises:
        UserError: If a file is missing or corrupt, or the features are those of another encoder or preprocessing, or
            all tokens instead of their mean, or vice versa.
    """
    if not is_feature_folder(Path(folder)):
        raise UserError(f"{folder}: has no features; write them with grr-coca data features, or set features: encoder")
    cache = FeatureCache(Path(folder))
    found = cache.header.encoder
    if info is not None and found.digest != info.digest:
        part = "weights" if found.weights != info.weights else "preprocessing"
        raise UserError(f"{folder}: has features of {found.name}; its {part} must equal that of {info.name}")
    if keep not in (None, cache.header.keep):
        raise UserError(f"{folder}: has the features '{cache.header.keep}', but the model takes '{keep}'")
    return cache
