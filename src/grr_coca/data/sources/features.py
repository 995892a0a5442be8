"""Pairs with the features of their images, which `grr-coca data features` has written.

Features are found by position: the features of image i of a source are row i of the feature folder. The SHA-256 of the
image file is compared with the stored digest, so that no image gets the features of another image.
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
    """Pairs of a source, with features of their images.

    Args:
        source: All pairs of a source, as `open_source` returns them.
        cache: Features of the source's images.

    Raises:
        UserError: If the features belong to other images.
    """

    def __init__(self, source: PairSource, cache: FeatureCache) -> None:
        if cache.header.source != source_digest(source):
            raise UserError(
                f"{cache.folder}: contains features of other images than those of {source.container(0)}; pass "
                "the folder with the features of these images"
            )
        self.source, self.sources, self.cache = source, (source,), cache
        self._numbers = image_numbers(source)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair.

        Raises:
            BadSample: If the pair cannot be read, or if its image could not be read when the features were computed.
            UserError: If the image has changed since the features were computed.
        """
        pair, number = self.source[index], int(self._numbers[index])
        features = self.cache.tokens(number)
        if features is None:
            raise BadSample(f"{pair.name}: has no features in {self.cache.folder}; compute them again")
        if hashlib.sha256(pair.image).digest() != self.cache.digest(number):
            raise UserError(
                f"{self.cache.folder}: contains features of another image than {pair.name}; compute the features again "
                "in a new folder"
            )
        return replace(pair, features=features)

    def digest_parts(self) -> Iterator[bytes | memoryview]:
        """Yield the digest parts of the source."""
        return self.source.digest_parts()

    def _locate(self, index: int) -> tuple[PairSource, int]:
        return self.source, index


def with_features(source: PairSource, folders: Sequence[str]) -> PairSource:
    """Return the pairs of a source, with features from the folder that belongs to the source.

    Args:
        source: All pairs of a source.
        folders: Feature folders of the same encoder, each for a different source.

    Raises:
        UserError: If no folder has features of these images, or the folders have different encoders or preprocessing.
    """
    first = open_features(folders[0])
    caches = [first, *(open_features(folder, first.header.encoder, first.header.keep) for folder in folders[1:])]
    digest = source_digest(source)
    for cache in caches:
        if cache.header.source == digest:
            return WithFeatures(source, cache)
    raise UserError(
        f"{', '.join(folders)}: no features of the images in {source.container(0)}; compute them with "
        "`grr-coca data features`"
    )


def open_features(folder: str, info: EncoderInfo | None = None, keep: Keep | None = None) -> FeatureCache:
    """Open a feature folder, and check that its features match a model.

    Args:
        folder: The folder.
        info: Frozen encoder of the model. If None, any encoder is accepted.
        keep: Kind of features that the model takes. If None, any kind is accepted.

    Raises:
        UserError: If a file is missing or corrupt, if the features come from another encoder or preprocessing, or if
            the folder contains all tokens instead of their mean, or vice versa.
    """
    if not is_feature_folder(Path(folder)):
        raise UserError(
            f"{folder}: contains no features; compute them with `grr-coca data features`, or set features: encoder"
        )
    cache = FeatureCache(Path(folder))
    found = cache.header.encoder
    if info is not None and found.digest != info.digest:
        part = "weights" if found.weights != info.weights else "preprocessing"
        raise UserError(
            f"{folder}: contains features of {found.name} with other {part} than {info.name}; compute the features "
            "again with `grr-coca data features`"
        )
    if keep not in (None, cache.header.keep):
        raise UserError(
            f"{folder}: contains features of the kind '{cache.header.keep}', but the model takes '{keep}'; compute "
            f"them again in a new folder with `grr-coca data features --keep {keep}`"
        )
    return cache
