"""Feature folder as a source of pairs. The image of each pair contains features; see `grr_coca.data.feature_image`.

In the folder, `pairs.jsonl` has a line per image with the key, the captions, the columns of the original table and, if
available, the path of an image to display. All files of the folder are opened when the first image is read. If
`pairs.jsonl` itself is opened as a source, it yields the original images, provided that their files have not been
moved.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from grr_coca.common.errors import UserError
from grr_coca.common.files import write_atomic
from grr_coca.data.feature_image import HEADER, feature_image
from grr_coca.data.features import EncoderInfo, FeatureCache, FeatureHeader, read_feature_header
from grr_coca.data.sources.base import MAX_TEXT, BadSample, Cause, PairSource, RawPair, digest_file, digest_header
from grr_coca.data.sources.folder import read_image_file
from grr_coca.data.sources.listed import ImageFiles, ListedPairs, ListedRow, StoredRows
from grr_coca.data.sources.tables import open_json_lines
from grr_coca.data.sources.views import ByImage, Chain
from grr_coca.data.stored_tokens import offer_tokens
from grr_coca.data.tokenizer import caption_lines, decode_text
from grr_coca.data.walk import has_image_suffix

PAIRS = "pairs.jsonl"
_PICTURE = "picture"
_PICTURE_COLUMNS = (_PICTURE, "thumbnail", "preview")
"""Columns of a table that may contain the path of an image to display."""


def is_feature_folder(folder: Path) -> bool:
    """Return whether a folder contains features, that is, whether it has a `features.json`."""
    return (folder / HEADER).is_file()


class FeaturePairs(PairSource):
    """Images of a feature folder with their captions. Each image is one pair.

    Args:
        folder: Folder written by `grr-coca data features`.
        has_images: Whether pairs contain the original image files. If False, they contain images made of features.

    Raises:
        UserError: If `features.json` or `pairs.jsonl` is missing, corrupt or inconsistent. The files of features are
            opened when the first pair is read.
    """

    def __init__(self, folder: Path, *, has_images: bool = False) -> None:
        self.folder, self.has_images = folder, has_images
        self.header: FeatureHeader = read_feature_header(folder)
        if not (folder / PAIRS).is_file():
            raise UserError(
                f"{folder}: {PAIRS} is missing; run the same `grr-coca data features` command again to add it"
            )
        self._listed = open_json_lines(folder / PAIRS, needs_images=False)
        if len(self._listed) != self.header.num_images:
            raise UserError(
                f"{folder / PAIRS}: lists {len(self._listed):,} images, but {HEADER} has "
                f"{self.header.num_images:,}; compute the features again"
            )

    @cached_property
    def cache(self) -> FeatureCache:
        """Features of the images.

        Raises:
            UserError: If a file is missing or corrupt.
        """
        return FeatureCache(self.folder)

    def __len__(self) -> int:
        return len(self._listed)

    def digest_parts(self) -> Iterator[bytes | memoryview]:
        """Yield the digests of the encoder and the original source, and the name and size of `pairs.jsonl`.

        Also yield the kind of features, and whether pairs contain the original images.
        """
        yield digest_header(self)
        yield f"{self.header.encoder.digest} {self.header.keep} {self.header.source} ".encode()
        yield b"images " if self.has_images else b""
        yield digest_file(self.folder / PAIRS)

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair with the features of its image. `RawPair.image` is the result of `image`."""
        caption, *others = self.captions(index)
        return RawPair(
            self._listed.key(index),
            self.name(index),
            self.image(index),
            caption,
            more_captions=tuple(others),
            picture=self.image_path(index),
            features=self.cache.tokens(index),
        )

    def image(self, index: int) -> bytes:
        """Return the mean token of an image as a PNG file or, if `has_images`, the original image file.

        Raises:
            BadSample: If the image has no features, or the original file is unknown, cannot be read or has changed.
            UserError: If a file of features is missing or corrupt.
        """
        mean = self.cache.mean(index)
        if mean is None:
            raise BadSample(f"{self.name(index)}: has no features; compute them again", Cause.NO_IMAGE)
        if self.has_images:
            return self._read_encoded_file(index)
        if self.header.keep == "mean":
            return feature_image(mean, self.header.encoder.digest)
        offer_tokens(self.cache)
        return feature_image(mean, self.header.encoder.digest, self.cache.digest(index))

    def _read_encoded_file(self, index: int) -> bytes:
        path = self.image_path(index)
        if path is None:
            raise BadSample(
                f"{self.name(index)}: {PAIRS} has no path of the image; compute the features again", Cause.NO_IMAGE
            )
        content = read_image_file(path, str(path))
        if hashlib.sha256(content).digest() != self.cache.digest(index):
            raise BadSample(
                f"{path}: not the image whose features are in {self.folder}; compute them again", Cause.NO_IMAGE
            )
        return content

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of an image."""
        return self._listed.captions(index)

    def name(self, index: int) -> str:
        """Return the name of an image, which consists of the folder and the key."""
        return f"{self.folder}/{self._listed.key(index)}"

    def container(self, index: int) -> str:  # noqa: ARG002 (the protocol has it)
        """Return the feature folder."""
        return str(self.folder)

    def image_path(self, index: int) -> Path | None:
        """Return the path of the image to display for a pair, or None if it is unknown. The file need not exist."""
        path = self._listed.fields(index).get(_PICTURE)
        return Path(path) if isinstance(path, str) and path else None

    def fields(self, index: int) -> Mapping[str, object]:
        """Return the columns of the original table for an image, by name, except captions and paths of images."""
        return {name: value for name, value in self._listed.fields(index).items() if name not in (_PICTURE, "caption")}


def feature_header_of(source: PairSource) -> FeatureHeader | None:
    """Return the description of the features that a source has instead of images, or None if it has images.

    Raises:
        UserError: If the source has both features and images, or features of several encoders.
    """
    first, *others = _parts(source)
    found = _header_of(first)
    for other in others:
        header = _header_of(other)
        require_same_features(other.container(0), header, None if found is None else found.encoder, first.container(0))
    return found


def _header_of(source: PairSource) -> FeatureHeader | None:
    return source.header if isinstance(source, FeaturePairs) and not source.has_images else None


def _parts(source: PairSource) -> list[PairSource]:
    return [part for one in source.sources for part in _parts(one)] if isinstance(source, Chain) else [source]


def require_same_features(name: str, found: FeatureHeader | None, expected: EncoderInfo | None, what: str) -> None:
    """Check that features come from the expected encoder or, if no encoder is expected, that images were found.

    Args:
        name: Name of the features or images.
        found: Description of the features. None if images were found.
        expected: The required encoder. None if images are required.
        what: Name of the model or source that has this requirement.

    Raises:
        UserError: If features and encoder do not match. The message names both.
    """
    if (None if found is None else found.encoder.digest) == (None if expected is None else expected.digest):
        return
    has = "images" if found is None else f"features of {found.encoder.name}"
    takes = matching = "images" if expected is None else f"features of {expected.name}"
    if has == takes:
        takes += " with other weights or another preprocessing"
    raise UserError(f"{name}: contains {has}, but {what} takes {takes}; pass matching {matching}")


def write_pairs(folder: Path, images: ByImage) -> None:
    """Write `pairs.jsonl` of a feature folder: the key, captions and other columns of each image of a source.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    write_atomic(folder / PAIRS, lambda file: file.writelines(_pair_lines(images)))


def _pair_lines(images: ByImage) -> Iterator[bytes]:
    source = images.source
    for number in range(len(images)):
        first, captions = images[number][0], list[str]()
        for index in images[number]:
            try:
                captions += source.captions(index)
            except BadSample:  # the pair has no caption, or an invalid caption
                continue
        columns = dict(source.fields(first)) if isinstance(source, ListedPairs) else {}
        row = {name: value for name, value in columns.items() if isinstance(value, str | int | float)}
        picture = _find_picture(source, first, row)
        row = {name: value for name, value in row.items() if name not in _PICTURE_COLUMNS}
        own = {"image_path": key_of(source, first), "caption": list(dict.fromkeys(captions))}
        yield json.dumps({**row, **own, **({_PICTURE: picture} if picture else {})}).encode() + b"\n"


def _find_picture(source: PairSource, index: int, columns: Mapping[str, object]) -> str:
    """Return the path of an image to display, or an empty string if neither the table nor the source has one."""
    named = next((str(columns[name]) for name in _PICTURE_COLUMNS if columns.get(name)), None)
    folder = source.listing.parent if isinstance(source, ListedPairs) else Path()
    path = Path(source.image_name(index)) if named is None else folder / named
    return str(path.absolute()) if has_image_suffix(path.name) and path.is_file() else ""


def key_of(source: PairSource, index: int) -> str:
    """Return the key of a pair. For a listing, the image is not read, so it need not exist.

    Raises:
        BadSample: If the pair cannot be read.
    """
    return source.key(index) if isinstance(source, ListedPairs) else source[index].key


def pairs_of_features(path: Path, names: Sequence[str] = ()) -> PairSource:
    """Open pairs of image names and captions. The images need not exist.

    Args:
        path: File of features, whose pairs have no captions, or folder with a text file of captions for each image.
        names: Names of the images without suffix. If empty, the names of the text files are used.

    Raises:
        UserError: If neither names nor text files are found, or a text file cannot be read.
    """
    if path.is_dir() and not names:
        texts = (text for text in path.rglob("*") if text.suffix.lower() == ".txt")
        names = sorted(text.relative_to(path).with_suffix("").as_posix() for text in texts)
    if not names:
        raise UserError(f"{path}: has no captions; expected a table, or a folder of .txt files")
    folder = path if path.is_dir() else path.parent
    rows = [ListedRow(name, _read_captions(folder / f"{name}.txt") if path.is_dir() else ()) for name in names]
    return ListedPairs(path, StoredRows(rows), ImageFiles(folder))


def _read_captions(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    return caption_lines(decode_text(read_image_file(path, str(path), MAX_TEXT), str(path)))
