"""Compute the features of a source's images, and write them to a folder (`grr_coca.data.features`).

Several processes can fill the same folder: each process takes shards that no other process has taken. To continue after
a process was killed, run the same command again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import UserError, count_of
from grr_coca.common.locks import LockHeldError, ProcessLock
from grr_coca.common.shapes import Float, UInt8
from grr_coca.common.threads import thread_pool
from grr_coca.data.features import (
    FeatureHeader,
    FeaturePrecision,
    Keep,
    is_feature_shard_done,
    open_feature_folder,
    write_feature_shard,
)
from grr_coca.data.given_features import GivenFeatures
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.base import BadSample, RawPair
from grr_coca.data.sources.feature_pairs import PAIRS, key_of, write_pairs
from grr_coca.data.sources.views import ByImage, source_digest
from grr_coca.infer.adapted.adaptation import file_digest
from grr_coca.infer.encoder import GivenEncoder, VisionEncoder

IMAGES_PER_SHARD = 2_048
_VARYING_PER_SHARD = 64
"""Number of images per shard if the number of tokens differs between images. Slides can have thousands of tokens
each."""
_BATCH = 32
_NUM_SAMPLED, _MAX_COMPARED = 64, 4
"""Number of images for which given features are looked up, and maximum number of these images that are also encoded, to
compare the features."""
_SAME_COSINE = 0.99


@dataclass
class WrittenFeatures:
    """Result of `write_features`.

    Attributes:
        num_written: Number of images encoded by this call.
        num_given: Number of images whose given features were stored by this call.
        num_taken: Number of images in shards that other processes have taken.
        bad: Error messages about unreadable images.
    """

    num_written: int = 0
    num_given: int = 0
    num_taken: int = 0
    bad: list[str] = field(default_factory=list)


def feature_header(
    images: ByImage, encoder: VisionEncoder, keep: Keep, precision: FeaturePrecision = "fp16"
) -> FeatureHeader:
    """Return the header that describes the features of a source's images."""
    return FeatureHeader(
        encoder=encoder.info,
        keep=keep,
        source=source_digest(images.source),
        num_images=len(images),
        images_per_shard=_VARYING_PER_SHARD
        if keep == "tokens" and encoder.info.num_tokens is None
        else IMAGES_PER_SHARD,
        precision=precision,
    )


def require_features_of(given: GivenFeatures, images: ByImage, encoder: VisionEncoder) -> None:
    """Check, for a sample of the images, that the given features come from the encoder.

    Raises:
        UserError: If the features have another width, another number of rows or other values, or no image of the sample
            has features.
    """
    given.require_row_count(len(images))
    preprocess, compared, is_only = encoder.info.preprocess, 0, isinstance(encoder, GivenEncoder)
    for number in np.unique(np.linspace(0, len(images) - 1, _NUM_SAMPLED).astype(int)).tolist():
        try:
            first = images[number][0]
            key = key_of(images.source, first)
            found = given.find(number, key)
            if found is None:
                continue
            pixels = None if is_only else _pixels(images.source[first], preprocess)
        except BadSample:
            continue
        if found.shape[1] != encoder.info.embed_dim:
            raise UserError(
                f"{given.path}: has features of width {found.shape[1]}, but {encoder.info.name} has "
                f"{encoder.info.embed_dim}; pass the encoder that computed them"
            )
        if pixels is None:
            return
        mean, expected = found.mean(axis=0), encoder.encode(pixels[None]).mean()[0]
        cosine = float(mean @ expected / max(float(np.linalg.norm(mean) * np.linalg.norm(expected)), 1e-12))
        if not cosine >= _SAME_COSINE:
            raise UserError(
                f"{given.path}: the features of {key} are neither the tokens of {encoder.info.name} nor their mean "
                f"(cosine {cosine:.2f}); compare weights, image size and preprocessing, and omit "
                "class token and registers"
            )
        compared += 1
        if compared == _MAX_COMPARED:
            return
    if not compared:
        raise UserError(
            f"{given.path}: has no features of these images; name features after the images, without suffix"
        )


def write_features(
    images: ByImage,
    encoder: VisionEncoder,
    keep: Keep,
    out: Path,
    on_image: Callable[[int], object],
    *,
    given: GivenFeatures | None = None,
    precision: FeaturePrecision = "fp16",
) -> WrittenFeatures:
    """Write the features of all images whose features are not stored yet, shard by shard.

    Shards that another process is writing are skipped. An unreadable image is reported in the result, and its digest is
    stored as zeros.

    Args:
        images: Images of a source.
        encoder: The encoder.
        keep: Whether to store all tokens of each image, or their mean.
        out: New folder, or a folder that an earlier, identical call has partly filled.
        on_image: Called with the number of finished images.
        given: Features that were computed elsewhere. Images without such features are encoded.
        precision: Precision of the features, half or single.

    Raises:
        UserError: If the folder has other content or cannot be written to, given features do not come from the encoder
            or have another number of tokens, or features are NaN or infinite in the given precision.
    """
    if given is not None:
        require_features_of(given, images, encoder)
    header = feature_header(images, encoder, keep, precision)
    written = WrittenFeatures()
    try:
        open_feature_folder(out, header)
        if not (out / PAIRS).exists():
            write_pairs(out, images)
        for shard in range(header.num_shards):
            numbers = header.images_of(shard)
            if not is_feature_shard_done(out, shard):
                try:
                    lock = ProcessLock(out / f".{shard:05d}.lock", removes=True)
                except LockHeldError:
                    written.num_taken += len(numbers)
                    continue
                try:
                    if not is_feature_shard_done(out, shard):
                        _write_shard(images, numbers, encoder, header, out, shard, written, on_image, given)
                finally:
                    lock.release()
            on_image(numbers.stop)
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror or error}); pass another folder") from error
    return written


def _write_shard(
    images: ByImage,
    numbers: range,
    encoder: VisionEncoder,
    header: FeatureHeader,
    out: Path,
    shard: int,
    written: WrittenFeatures,
    on_image: Callable[[int], object],
    given: GivenFeatures | None,
) -> None:
    no_rows = 0 if header.varies else len(numbers)
    rows, varying = np.zeros((no_rows, *header.row_shape), header.dtype), dict[int, np.ndarray]()
    digests = np.zeros((len(numbers), 32), np.uint8)
    done = 0
    for batch in _read_ahead(images, numbers, encoder, given):
        fresh = [one.pixels for one in batch if isinstance(one, _ReadImage) and one.pixels is not None]
        written.bad += [one for one in batch if isinstance(one, str)]
        found: Iterator[np.ndarray] = iter(())
        if fresh:
            encoded = encoder.encode(np.stack(fresh))
            found = iter(encoded.mean() if header.keep == "mean" else encoded.tokens)
        for index, one in enumerate(batch, start=done):
            if isinstance(one, _ReadImage):
                kept = next(found) if one.given is None else _select_features(one.given, header, given)
                if header.varies:
                    varying[index] = kept.astype(header.dtype)
                else:
                    rows[index] = kept
                digests[index] = np.frombuffer(one.digest, np.uint8)
                written.num_given += one.given is not None
        written.num_written += len(fresh)
        done += len(batch)
        on_image(numbers.start + done)
    ends = None
    if header.varies:
        rows = np.concatenate([rows, *(varying[index] for index in sorted(varying))])
        ends = np.cumsum([len(varying.get(index, ())) for index in range(len(numbers))], dtype=np.int64)
    if not np.isfinite(rows).all():
        if header.precision == "fp32":
            raise UserError(f"{header.encoder.name}: some features are NaN or infinite; use another encoder or weights")
        raise UserError(
            f"{header.encoder.name}: some features are NaN or infinite in half precision; use --precision fp32"
        )
    write_feature_shard(out, shard, rows, digests, ends)


class _ReadImage(NamedTuple):
    """Digest of an image file, and the pixels or the given features of the image."""

    digest: bytes
    pixels: UInt8[np.ndarray, "S S 3"] | None
    given: Float[np.ndarray, "N D"] | None


def _select_features(
    tokens: Float[np.ndarray, "N D"], header: FeatureHeader, given: GivenFeatures | None
) -> Float[np.ndarray, "..."]:
    """Return the part of an image's given features that is stored."""
    if header.keep == "mean":
        return tokens.mean(axis=0)
    if not header.varies and tokens.shape != header.row_shape:
        assert given is not None
        raise UserError(
            f"{given.path}: an image has {count_of(len(tokens), 'token')}, but {header.encoder.name} computes "
            f"{header.row_shape[0]}; store their mean with --keep mean"
        )
    return tokens


def _pixels(pair: RawPair, preprocess: Preprocess) -> UInt8[np.ndarray, "S S 3"]:
    return preprocess(preprocess.decode(pair.image, pair.name))


def _read_ahead(
    images: ByImage, numbers: range, encoder: VisionEncoder, given: GivenFeatures | None
) -> Iterator[list[_ReadImage | str]]:
    """Yield batches of images. In a batch, an error message replaces each image that cannot be read.

    Threads read the next batch while the current one is encoded.
    """
    preprocess, source = encoder.info.preprocess, images.source

    def read(number: int) -> _ReadImage | str:
        try:
            if isinstance(encoder, GivenEncoder):
                assert given is not None
                key = key_of(source, images[number][0])
                tokens = given.find(number, key)
                if tokens is None:
                    return f"{given.path}: has no features of {key}"
                # a digest of the features replaces the digest of the image file, which is not available
                return _ReadImage(file_digest(np.ascontiguousarray(tokens, np.float16).tobytes()), None, tokens)
            pair = source[images[number][0]]
            tokens = None if given is None else given.find(number, pair.key)
            pixels = _pixels(pair, preprocess) if tokens is None else None
            return _ReadImage(file_digest(pair.image), pixels, tokens)
        except BadSample as error:
            return str(error)

    with thread_pool(2, "read") as pool:
        ahead = None
        for start in range(0, len(numbers), _BATCH):
            following = [pool.submit(read, number) for number in numbers[start : start + _BATCH]]
            if ahead is not None:
                yield [one.result() for one in ahead]
            ahead = following
        if ahead is not None:
            yield [one.result() for one in ahead]
