"""Folder of features from an external image encoder, so that the encoder runs only once per image.

The features of image i of a source are row `i % images_per_shard` of the file `NNNNN.npy`, where the five digits NNNNN
are the shard number `i // images_per_shard`. `NNNNN.digests.npy` contains the SHA-256 of each image file, so that
features can be found even if an image has moved. The digest is zero if an image could not be read. The digests are
written last, so a shard that has digests is complete. `features.json` describes all shards. If images have different
numbers of tokens, `NNNNN.npy` contains the concatenated tokens of all images, and `NNNNN.ends.npy` contains the
position at which the tokens of each image end.

Shapes: M images of a shard, N tokens, D width.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json, write_atomic, write_bytes_atomic
from grr_coca.common.shapes import Float, Int, UInt8
from grr_coca.data.feature_image import HEADER
from grr_coca.data.preprocess import EncoderPreprocess

Keep = Literal["tokens", "mean"]
FeaturePrecision = Literal["fp16", "fp32"]
_DTYPES: dict[FeaturePrecision, type[np.floating]] = {"fp16": np.float16, "fp32": np.float32}
FORMAT = 1
"""Format version of the files."""


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """Description of an image encoder.

    Attributes:
        name: Name by which `grr_coca.infer.encoder.open_encoder` opens the encoder.
        weights: SHA-256 of the encoder's weights, in hexadecimal digits.
        licence: Licence of the weights, as an identifier of the Hugging Face hub, or `unknown`.
        preprocess: Preprocessing of the encoder.
        embed_dim: Width of the tokens, D.
        num_tokens: Number of tokens per image, N. None if the number varies.
        precision: Precision of the weights in the exported graph that this description accompanies. Features are always
            computed in fp32.
    """

    name: str
    weights: str
    licence: str
    preprocess: EncoderPreprocess
    embed_dim: int
    num_tokens: int | None
    precision: Literal["fp32", "fp16", "int8"] = "fp32"

    @property
    def digest(self) -> str:
        """Hash of everything that affects the tokens.

        Encoders with the same weights and preprocessing have the same digest, even if their names, licences or
        precisions differ.
        """
        content = {**to_dict(self), "name": "", "licence": ""}
        del content["precision"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class FeatureHeader:
    """The content of `features.json`.

    Attributes:
        encoder: The encoder that computed the features.
        keep: Features stored for each image: all of its tokens (`tokens`), or their mean (`mean`).
        source: Digest of the pairs; see `source_digest`.
        num_images: Number of images in the source.
        images_per_shard: Number of images per shard; the last shard may have fewer.
        precision: Precision of the features: half or single.
        version: Format version; see `FORMAT`.

    Raises:
        UserError: If the version is not `FORMAT`, or `num_images` or `images_per_shard` is below 1.
    """

    encoder: EncoderInfo
    keep: Keep
    source: str
    num_images: int
    images_per_shard: int
    precision: FeaturePrecision = "fp16"
    version: int = FORMAT

    def __post_init__(self) -> None:
        if self.version != FORMAT:
            raise UserError(f"version must be {FORMAT}, got {self.version}; update grr-coca, or compute features again")
        if self.num_images < 1 or self.images_per_shard < 1:
            raise UserError(
                f"num_images and images_per_shard must be at least 1, got {self.num_images} and {self.images_per_shard}"
            )

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_images // self.images_per_shard)

    @property
    def varies(self) -> bool:
        """Whether images have different numbers of tokens. A row is then a token instead of an image."""
        return self.keep == "tokens" and self.encoder.num_tokens is None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row, which contains the features of an image or, if `varies`, a single token."""
        width, num_tokens = self.encoder.embed_dim, self.encoder.num_tokens
        return (width,) if self.keep == "mean" or num_tokens is None else (num_tokens, width)

    @property
    def row_bytes(self) -> int:
        """Size of a row in bytes."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.row_shape))

    @property
    def dtype(self) -> type[np.floating]:
        """Data type of the stored numbers."""
        return _DTYPES[self.precision]

    def images_of(self, shard: int) -> range:
        """Return the indices of a shard's images."""
        start = shard * self.images_per_shard
        return range(start, min(start + self.images_per_shard, self.num_images))


def open_feature_folder(folder: Path, header: FeatureHeader) -> None:
    """Create the feature folder, or check that the existing folder has the same settings.

    Raises:
        UserError: If the folder contains other features or unrelated files, or its description is corrupt.
        OSError: If the disk is full or cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / HEADER
    if path.exists():
        found = read_feature_header(folder)
        if found.encoder.digest != header.encoder.digest:
            raise UserError(f"{folder}: contains features of another encoder, {found.encoder.name}; pass a new folder")
        for name in ("keep", "source", "num_images", "images_per_shard", "precision"):
            if getattr(found, name) != getattr(header, name):
                raise UserError(f"{folder}: contains features with another {name.replace('_', ' ')}; pass a new folder")
        return
    if any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; pass a new folder")
    write_bytes_atomic(path, json.dumps(to_dict(header), indent=2, ensure_ascii=False).encode())


def read_feature_header(folder: Path) -> FeatureHeader:
    """Read the description of a feature folder.

    Raises:
        UserError: If the description is missing or corrupt.
    """
    return from_dict(FeatureHeader, read_json(folder / HEADER), str(folder / HEADER))


def write_feature_shard(
    folder: Path,
    shard: int,
    rows: Float[np.ndarray, "_ ..."],
    digests: UInt8[np.ndarray, "M 32"],
    ends: Int[np.ndarray, " M"] | None = None,
) -> None:
    """Write the features of a shard.

    Args:
        folder: Folder of the features.
        shard: Number of the shard.
        rows: Features of the images or, if `ends` is given, the tokens of all images, in the precision of the folder.
        digests: SHA-256 of each image file. Zero if the file could not be read.
        ends: For each image, the index of the row after its last token. If None, each image has one row.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    if ends is not None:
        write_atomic(folder / _file_name(shard, ".ends"), lambda file: np.save(file, ends))
    write_atomic(folder / _file_name(shard), lambda file: np.save(file, np.ascontiguousarray(rows)))
    write_atomic(folder / _file_name(shard, ".digests"), lambda file: np.save(file, digests))


def is_feature_shard_done(folder: Path, shard: int) -> bool:
    """Return whether a shard is complete, that is, whether its digests have been written."""
    return (folder / _file_name(shard, ".digests")).exists()


def _file_name(shard: int, part: str = "") -> str:
    return f"{shard:05d}{part}.npy"


class _Shard(NamedTuple):
    """Content of a shard's files; see `write_feature_shard`."""

    rows: Float[np.ndarray, "_ ..."]
    digests: UInt8[np.ndarray, "M 32"]
    ends: Int[np.ndarray, " M"] | None


class FeatureCache:
    """Memory-mapped features of images in a folder.

    Args:
        folder: Folder written by `grr-coca data features`.

    Raises:
        UserError: If the description is missing or corrupt, or a shard is missing. The content of a shard is checked
            when it is first read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header = read_feature_header(folder)
        missing = [shard for shard in range(self.header.num_shards) if not is_feature_shard_done(folder, shard)]
        if missing:
            raise UserError(
                f"{folder}: missing shards: {len(missing):,} of {self.header.num_shards:,}, such as "
                f"{_file_name(missing[0])}; run the same `grr-coca data features` command again to continue"
            )
        self._shards: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return self.header.num_images

    def __getitem__(self, image: int) -> Float[np.ndarray, "..."] | None:
        """Return the features of an image by its index in the source, or None if the image could not be read.

        The result has the shape D, if only the mean is stored, or N D.

        Raises:
            UserError: If a file of the shard is missing or corrupt.
        """
        shard, row = self._shard_of(image)
        if not shard.digests[row].any():
            return None
        if shard.ends is None:
            return shard.rows[row]
        return shard.rows[shard.ends[row - 1] if row else 0 : shard.ends[row]]

    def digest(self, image: int) -> bytes:
        """Return the SHA-256 of an image's file, by the index of the image, or 32 zero bytes if it could not be read.

        Raises:
            UserError: If a file of the shard is missing or corrupt.
        """
        shard, row = self._shard_of(image)
        return bytes(shard.digests[row])

    def _shard_of(self, image: int) -> tuple["_Shard", int]:
        """Return the memory-mapped shard of an image, and the index of the image in the shard."""
        shard, row = divmod(image, self.header.images_per_shard)
        if shard not in self._shards:
            count, ends = len(self.header.images_of(shard)), None
            if self.header.varies:
                ends = _open_array(self.folder / _file_name(shard, ".ends"), (count,), np.int64)
            num_rows = count if ends is None else int(ends[-1])
            rows = _open_array(self.folder / _file_name(shard), (num_rows, *self.header.row_shape), self.header.dtype)
            self._shards[shard] = _Shard(rows, self._digests_of(shard), ends)
        return self._shards[shard], row

    def __getstate__(self) -> dict[str, object]:
        """Return the state without mapped files, because other processes must map them again."""
        return {"folder": self.folder, "header": self.header, "_shards": {}}

    def tokens(self, image: int) -> Float[np.ndarray, "N D"] | None:
        """Return the tokens of an image by its index in the source, or None if the image could not be read.

        If only the mean is stored, it is returned as a single token.
        """
        row = self[image]
        return row if row is None else np.atleast_2d(row)

    def mean(self, image: int) -> Float[np.ndarray, " D"] | None:
        """Return the mean token of an image in fp32, by the image's index, or None if the image could not be read."""
        row = self[image]
        if row is None:
            return None
        return row.astype(np.float32) if self.header.keep == "mean" else row.mean(axis=0, dtype=np.float32)

    def find(self, digest: bytes) -> int | None:
        """Return the index of an image whose file has the given SHA-256, or None if no image matches.

        The first call reads all digests.
        """
        return self._numbers.get(digest)

    def find_tokens(self, encoder: str, digest: bytes) -> Float[np.ndarray, "N D"] | None:
        """Return all tokens of an image by the SHA-256 of its file.

        The result is None if no image matches, the features come from another encoder, or only means are stored.
        """
        if self.header.encoder.digest != encoder or self.header.keep != "tokens":
            return None
        number = self.find(digest)
        return None if number is None else self.tokens(number)

    @cached_property
    def _numbers(self) -> dict[bytes, int]:
        rows = (row for shard in range(self.header.num_shards) for row in self._digests_of(shard))
        return {bytes(row): number for number, row in enumerate(rows) if row.any()}

    def _digests_of(self, shard: int) -> UInt8[np.ndarray, "M 32"]:
        return _open_array(
            self.folder / _file_name(shard, ".digests"), (len(self.header.images_of(shard)), 32), np.uint8
        )


def _open_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    try:
        found = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: corrupt, or cannot be read ({error}); delete this file and its digests, "
            "then run `grr-coca data features` again"
        ) from error
    if found.shape != shape or found.dtype != dtype:
        raise UserError(
            f"{path}: corrupt: expected {shape} {np.dtype(dtype)}, found {found.shape} {found.dtype}; delete this file "
            "and its digests, then run `grr-coca data features` again"
        )
    return found
