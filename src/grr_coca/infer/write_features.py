"""Compute the features of the images of a source, and write them into a folder (`grr_coca.data.features`).

Several processes may fill one folder: each takes the shards that no other one has. A process that was killed is
continued by the same command.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.locks import LockHeldError, ProcessLock
from grr_coca.common.shapes import UInt8
from grr_coca.common.threads import thread_pool
from grr_coca.data.features import (
    FeatureHeader,
    Keep,
    is_feature_shard_done,
    open_feature_folder,
    write_feature_shard,
)
from grr_coca.data.sources.base import BadSample
from grr_coca.data.sources.views import ByImage, source_digest
from grr_coca.infer.adapted.adaptation import file_digest
from grr_coca.infer.encoder import VisionEncoder

IMAGES_PER_SHARD = 2_048
_BATCH = 32


@dataclass
class WrittenFeatures:
    """Result of `write_features`.

    Attributes:
        num_written: Images that this process has encoded.
        num_elsewhere: Images of shards that other processes work on.
        bad: Errors of images that cannot be read.
    """

    num_written: int = 0
    num_elsewhere: int = 0
    bad: list[str] = field(default_factory=list)


def feature_header(images: ByImage, encoder: VisionEncoder, keep: Keep) -> FeatureHeader:
    """Describe the features of the images of a source."""
    return FeatureHeader(
        encoder=encoder.info,
        keep=keep,
        source=source_digest(images.source),
        num_images=len(images),
        images_per_shard=IMAGES_PER_SHARD,
    )


def write_features(
    images: ByImage, encoder: VisionEncoder, keep: Keep, out: Path, on_image: Callable[[int], object]
) -> WrittenFeatures:
    """Write the features of all images that are not there yet.

    Args:
        images: Images of a source.
        encoder: Encoder.
        keep: All tokens of each image, or their mean.
        out: New folder, or one that the same call has begun to fill.
        on_image: Called with the number of finished images.

    Raises:
        UserError: The folder has something else, or cannot be written to.
    """
    header = feature_header(images, encoder, keep)
    written = WrittenFeatures()
    try:
        open_feature_folder(out, header)
        for shard in range(header.num_shards):
            numbers = header.images_of(shard)
            if not is_feature_shard_done(out, shard):
                try:
                    lock = ProcessLock(out / f".{shard:05d}.lock", removes=True)
                except LockHeldError:
                    written.num_elsewhere += len(numbers)
                    continue
                try:
                    if not is_feature_shard_done(out, shard):
                        _write_shard(images, numbers, encoder, header, out, shard, written, on_image)
                finally:
                    lock.release()
            on_image(numbers.stop)
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror or error})") from error
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
) -> None:
    rows = np.zeros((len(numbers), *header.row_shape), np.float16)
    digests = np.zeros((len(numbers), 32), np.uint8)
    done = 0
    for batch in _read_ahead(images, numbers, encoder):
        fresh = [one for one in batch if not isinstance(one, str)]
        written.bad += [one for one in batch if isinstance(one, str)]
        if fresh:
            encoded = encoder.encode(np.stack([pixels for _, pixels in fresh]))
            found = iter(encoded.mean() if header.keep == "mean" else encoded.tokens)
            for place, one in enumerate(batch, start=done):
                if not isinstance(one, str):
                    rows[place] = next(found)
                    digests[place] = np.frombuffer(one[0], np.uint8)
        written.num_written += len(fresh)
        done += len(batch)
        on_image(numbers.start + done)
    if not np.isfinite(rows).all():
        raise UserError(f"{header.encoder.name}: computes values that half precision cannot hold")
    write_feature_shard(out, shard, rows, digests)


_Read = tuple[bytes, UInt8[np.ndarray, "S S 3"]] | str
"""Digest of the file of an image, and its pixels; or the error if it cannot be read."""


def _read_ahead(images: ByImage, numbers: range, encoder: VisionEncoder) -> Iterator[list[_Read]]:
    """Yield batches of images. Threads read the next batch while this one is encoded."""
    preprocess, source = encoder.info.preprocess, images.source

    def read(number: int) -> _Read:
        try:
            pair = source[images[number][0]]
            return file_digest(pair.image), preprocess(preprocess.decode(pair.image, pair.name))
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
