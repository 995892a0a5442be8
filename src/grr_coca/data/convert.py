"""Convert any source to tar shards in the layout of img2dataset.

Each image becomes three files: `KEY.jpg` (or `.png`, `.webp` …), which is the unchanged image file or, if the image is
larger than a requested size, a smaller JPEG; `KEY.txt` with the first caption; and `KEY.json` with the key and the
caption in the source. If any image in a shard has several captions,
each `KEY.json` of that shard also has a list `captions` with all captions of its image, which `TarShards` reads. Rows
of a table with the same image become one pair with all their captions, because separate pairs could end up in both
training and validation.

A shard contains the valid images from a fixed range of the source. It gets its final name only when it is complete, so
an interrupted conversion continues where it stopped.
"""

import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json, write_bytes_atomic
from grr_coca.data.isolated import decode_image, image_header
from grr_coca.data.sources.base import BadSample, PairSource, RawPair
from grr_coca.data.sources.folder import caption_file
from grr_coca.data.sources.views import ByImage, num_captions, read_valid_captions, read_valid_pair

_CONVERSION_NAME = "convert.json"
_UNFINISHED = re.compile(r"\.\d{5,}\.\d+\.tmp|\.(convert|\d{5,}_stats)\.json\.\d+\.[0-9a-f]+\.partial")
"""Pattern of the temporary names of unfinished shards and JSON files; see `write_bytes_atomic`."""
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "PPM": "ppm"}
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Conversion:
    """Settings of a conversion, which are saved in the folder of the conversion.

    An interrupted conversion can be continued only with the same settings.

    Attributes:
        source: Path or pattern of the source.
        num_images: Number of images in the source.
        pairs_per_shard: Number of images in the range of the source that a shard covers.
        image_size: Shorter side, in pixels, to which larger images are scaled down. None keeps all image files.
        source_bytes, source_changed_ns: Size and time of the last change of the source; see `source_state`. None if
            unknown.
    """

    source: str
    num_images: int
    pairs_per_shard: int
    image_size: int | None
    _: KW_ONLY
    source_bytes: int | None = None
    source_changed_ns: int | None = None


_SOURCE_FIELDS = {"num_images", "source_bytes", "source_changed_ns"}
"""Settings that show whether the source has changed."""


def source_state(source: PairSource) -> tuple[int, int]:
    """Return the total size in bytes of the caption files, and the time of their last change in nanoseconds.

    The caption files are shards, a listing, or one text file per image.
    """
    size = changed = 0
    for path in _caption_files(source):
        status = path.stat()
        size, changed = size + status.st_size, max(changed, status.st_mtime_ns)
    return size, changed


def _caption_files(source: PairSource) -> Iterator[Path]:
    is_file: dict[str, bool] = {}  # a container that is not a file is a folder with one text file per image
    for index in range(len(source)):
        container = source.container(index)
        if container not in is_file:
            is_file[container] = Path(container).is_file()
            if is_file[container]:
                yield Path(container)
        if not is_file[container] and (path := caption_file(Path(source.image_name(index)))) is not None:
            yield path


def convert(images: ByImage, conversion: Conversion, out: Path, on_image: Callable[[int], None]) -> Counter[str]:
    """Write shards `00000.tar` … into a folder.

    Args:
        images: The images, each with its pairs. Bad images are omitted.
        conversion: Settings of the conversion.
        out: A new or empty folder, or the folder of an interrupted conversion with the same settings.
        on_image: Called with the number of finished images.

    Returns:
        Counts by name: under `written`, the number of written images; under each cause of an error, the number of
        images omitted for this cause, plus the number of bad captions omitted from images that also have valid ones.

    Raises:
        UserError: If the folder has other files, contains another conversion, or cannot be written to.
    """
    try:
        _open_folder(out, conversion)
        total: Counter[str] = Counter()
        for shard, start in enumerate(range(0, len(images), conversion.pairs_per_shard)):
            numbers = range(start, min(start + conversion.pairs_per_shard, len(images)))
            total += _read_stats(out, shard) or _write_shard(images, numbers, conversion, out, shard, on_image)
            on_image(numbers.stop)
        for path in out.iterdir():
            if _UNFINISHED.fullmatch(path.name):  # left by a conversion that was killed
                path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror}); pass another folder") from error
    return total


def _open_folder(out: Path, conversion: Conversion) -> None:
    expected = asdict(conversion)
    out.mkdir(parents=True, exist_ok=True)
    there = sorted(path.name for path in out.iterdir() if not _UNFINISHED.fullmatch(path.name))
    if not there:
        write_bytes_atomic(out / _CONVERSION_NAME, json.dumps(expected, indent=2).encode())
    elif _CONVERSION_NAME not in there:
        raise UserError(f"{out}: not empty (it contains {there[0]}); pass a new folder")
    else:
        found = read_json(out / _CONVERSION_NAME)  # files of older versions lack the state of the source
        differing = {
            key for key in expected.keys() | found.keys() if found.get(key, expected.get(key)) != expected.get(key)
        }
        if differing - _SOURCE_FIELDS:
            raise UserError(f"{out}: contains another conversion (see {_CONVERSION_NAME}); pass a new folder")
        if differing:
            raise UserError(
                f"{out}: contains a conversion of an older version of {conversion.source}; pass a new folder"
            )


def _read_stats(out: Path, shard: int) -> Counter[str] | None:
    """Return the counts of a shard (see `convert`), or None if the shard is not complete."""
    try:
        return Counter(json.loads((out / f"{shard:05d}_stats.json").read_bytes()))
    except (FileNotFoundError, ValueError):
        return None


def _write_shard(
    images: ByImage, numbers: range, conversion: Conversion, out: Path, shard: int, on_image: Callable[[int], None]
) -> Counter[str]:
    counts: Counter[str] = Counter()
    has_several = any(sum(num_captions(images.source, index) for index in images[number]) > 1 for number in numbers)
    temporary = out / f".{shard:05d}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for number in numbers:
                    try:
                        pair = _read_image(images, number, counts)
                        _add(tar, f"{number:09d}", pair, has_several, conversion.image_size)
                        counts["written"] += 1
                    except BadSample as error:
                        counts[str(error.cause)] += 1
                    on_image(number + 1)
            file.flush()
            os.fsync(file.fileno())
        if counts["written"]:
            temporary.replace(out / f"{shard:05d}.tar")
    finally:
        temporary.unlink(missing_ok=True)
    # This file is written after the shard, because it marks the shard as complete.
    write_bytes_atomic(out / f"{shard:05d}_stats.json", json.dumps(counts, indent=2).encode())
    return counts


def _read_image(images: ByImage, number: int, counts: Counter[str]) -> RawPair:
    """Read an image and the captions of all its pairs.

    Bad captions are counted and skipped if at least one valid caption remains.

    Raises:
        BadSample: If the image is bad, or all of its captions are bad.
    """
    source, (first, *others) = images.source, images[number]
    if not others:
        return read_valid_pair(source, first)
    captions: dict[int, tuple[str, ...]] = {}
    errors = []
    for index in (first, *others):
        try:
            captions[index] = read_valid_captions(source, index)
        except BadSample as error:
            errors.append(error)
    if not captions:
        raise errors[0]
    pair = read_valid_pair(source, next(iter(captions)))
    counts.update(str(error.cause) for error in errors)
    return replace(pair, more_captions=tuple(chain.from_iterable(captions.values()))[1:])


def _add(tar: tarfile.TarFile, key: str, pair: RawPair, has_several: bool, image_size: int | None) -> None:
    image, suffix = _image_file(pair, image_size)
    about: dict[str, object] = {"key": pair.key, "caption": pair.caption}
    if has_several:
        about["captions"] = pair.captions
    members = {
        suffix: image,
        "txt": re.sub(r"\s*\n\s*", " ", pair.caption).encode(),  # a line end would start another caption
        "json": json.dumps(about, ensure_ascii=False).encode("utf-8", "replace"),
    }
    for name, content in members.items():
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


def _image_file(pair: RawPair, image_size: int | None) -> tuple[bytes, str]:
    """Return the bytes and suffix of the image to write.

    The bytes are those of the unchanged file or, if the shorter side is longer than `image_size`, those of a JPEG
    scaled down to this size.

    Raises:
        BadSample: If the image cannot be decoded.
    """
    size, kind = image_header(pair.image, pair.name)
    if image_size is None or min(size) <= image_size:
        return pair.image, _SUFFIXES.get(kind, kind.lower())
    image = decode_image(pair.image, pair.name)
    scale = image_size / min(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue(), "jpg"
