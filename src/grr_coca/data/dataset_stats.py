"""Statistics of a source: numbers of images, captions, duplicates and bad pairs, and a contact sheet of its images."""

import hashlib
import textwrap
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from grr_coca.data.isolated import decode_image, image_header
from grr_coca.data.sources.base import BadSample, PairSource
from grr_coca.data.sources.shards import TarShards
from grr_coca.data.sources.views import image_numbers, read_valid_pair

_NUM_EXAMPLES = 5
"""Maximum number of bad pairs that are named for each cause."""

NUM_CAPTIONS, _NUM_HEADERS = 100_000, 1_000
"""Maximum numbers of evenly spaced pairs whose captions and whose image headers `sample_source` reads."""

_WORD_BOUNDS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
"""Lower bounds of the bins of caption lengths, in words."""


@dataclass
class DatasetStats:
    """Statistics of a source. `num_read` of its `num_pairs` pairs have been read.

    All occurrences of a caption or image except the first one count as duplicates. Differences in case and spaces
    between captions are ignored.

    Attributes:
        num_images: Number of distinct images. It can be lower than `num_pairs`, because several rows of a table may
            share an image. None if the images were not counted.
        num_captions: Number of captions of the pairs that have been read.
        broken: Number of bad pairs, by cause.
        examples: Error messages of the first bad pairs, by cause.
        caption_words: Number of captions, by their number of words.
        duplicate_captions, duplicate_images: Numbers of duplicates. None if they were not counted.
        vocabulary: Number of distinct words. None if they were not counted.
        image_sizes: Number of images, by width and height in pixels.
        shards: Number of tar shards. None if the source is in another format.
        truncated_shards: Paths of the truncated shards.
    """

    num_pairs: int
    _: KW_ONLY
    num_images: int | None = None
    num_read: int = 0
    num_captions: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    caption_words: Counter[int] = field(default_factory=Counter)
    duplicate_captions: int | None = None
    duplicate_images: int | None = None
    vocabulary: int | None = None
    image_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    shards: int | None = None
    truncated_shards: list[str] = field(default_factory=list)

    def add_bad_pair(self, error: BadSample) -> None:
        """Count a bad pair, and keep the message if it is one of the first of its cause."""
        self.broken[str(error.cause)] += 1
        examples = self.examples.setdefault(str(error.cause), [])
        if len(examples) < _NUM_EXAMPLES:
            examples.append(str(error))

    def add_captions(self, captions: tuple[str, ...]) -> None:
        """Count the captions of a pair, and their words."""
        self.num_captions += len(captions)
        self.caption_words.update(len(caption.split()) for caption in captions)

    def word_histogram(self) -> dict[str, int]:
        """Return the number of captions in each bin of lengths in words, such as `3-4`, up to the longest caption."""
        counts: Counter[int] = Counter()
        for words, number in self.caption_words.items():
            counts[int(np.searchsorted(_WORD_BOUNDS, words, side="right"))] += number
        return {_bin_name(number): counts[number] for number in range(1, 1 + max(counts, default=0))}


def check_source(source: PairSource, on_pair: Callable[[int], None]) -> DatasetStats:
    """Compute statistics of all pairs, except `vocabulary`. Every pair is read and decoded once.

    Args:
        source: Source of the pairs.
        on_pair: Called with the number of finished pairs.
    """
    stats = _new_stats(source)
    captions, images = array("Q"), array("Q")
    numbers = image_numbers(source)
    stats.num_images = int(numbers.max(initial=-1)) + 1
    hashed = np.zeros(stats.num_images, bool)
    for index in range(len(source)):
        try:
            pair = read_valid_pair(source, index)
        except BadSample as error:
            stats.add_bad_pair(error)
        else:
            stats.add_captions(pair.captions)
            captions.extend(_hash_content(" ".join(caption.lower().split()).encode()) for caption in pair.captions)
            if not hashed[numbers[index]]:  # another row with the same image is not a duplicate
                hashed[numbers[index]] = True
                stats.image_sizes[image_header(pair.image, pair.name)[0]] += 1
                images.append(_hash_content(pair.image))
        on_pair(index + 1)
    stats.num_read = len(source)
    stats.duplicate_captions = len(captions) - len(np.unique(np.frombuffer(captions, np.uint64)))
    stats.duplicate_images = len(images) - len(np.unique(np.frombuffer(images, np.uint64)))
    return stats


def sample_source(source: PairSource) -> DatasetStats:
    """Compute approximate statistics from captions and image headers of evenly spaced pairs.

    No image is decoded, and images and duplicates are not counted.
    """
    stats = _new_stats(source)
    words: set[str] = set()
    for index in _spread_evenly(len(source), NUM_CAPTIONS):
        stats.num_read += 1
        try:
            captions = source.captions(index)
        except BadSample as error:
            stats.add_bad_pair(error)
            continue
        stats.add_captions(captions)
        words.update(word for caption in captions for word in caption.lower().split())
    stats.vocabulary = len(words)
    for index in _spread_evenly(len(source), _NUM_HEADERS):
        with suppress(BadSample):  # `check_source` reports the error
            pair = source[index]
            stats.image_sizes[image_header(pair.image, pair.name)[0]] += 1
    return stats


def _spread_evenly(length: int, count: int) -> Iterator[int]:
    """Yield at most `count` evenly spaced indices below `length`."""
    count = min(count, length)
    return (number * length // count for number in range(count))


def _new_stats(source: PairSource) -> DatasetStats:
    if not isinstance(source, TarShards):
        return DatasetStats(len(source))
    return DatasetStats(
        len(source), shards=len(source.paths), truncated_shards=[str(path) for path in source.truncated]
    )


def _bin_name(number: int) -> str:
    low = _WORD_BOUNDS[number - 1]
    if number == len(_WORD_BOUNDS):
        return f"{low}+"
    high = _WORD_BOUNDS[number] - 1
    return str(low) if low == high else f"{low}-{high}"


def _hash_content(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


# --- Contact sheet

_COLUMNS, _ROWS = 8, 6
_IMAGE_SIDE, _MARGIN, _LINE_HEIGHT, _MAX_LINES, _MAX_LETTERS = 144, 8, 14, 3, 24
_FONT_SIZE = 11
_CELL = (_IMAGE_SIDE + 2 * _MARGIN, _IMAGE_SIDE + 3 * _MARGIN + _MAX_LINES * _LINE_HEIGHT)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_contact_sheet(source: PairSource) -> Image.Image:
    """Draw up to 48 evenly spaced images of a source with their captions. For a bad pair, write the cause instead."""
    indices = list(_spread_evenly(len(source), _COLUMNS * _ROWS))
    sheet = Image.new("RGB", (_COLUMNS * _CELL[0], -(-len(indices) // _COLUMNS) * _CELL[1]), "white")
    font = label_font()
    for number, index in enumerate(indices):
        row, column = divmod(number, _COLUMNS)
        sheet.paste(_draw_cell(source, index, font), (column * _CELL[0], row * _CELL[1]))
    return sheet


def label_font() -> Font:
    """Return matplotlib's DejaVu Sans, which supports most alphabets.

    If matplotlib is not installed, return Pillow's font, which has only Latin letters.
    """
    if find_spec("matplotlib") is None:
        return ImageFont.load_default(_FONT_SIZE)
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), _FONT_SIZE)


def _draw_cell(source: PairSource, index: int, font: Font) -> Image.Image:
    cell = Image.new("RGB", _CELL, "white")
    draw = ImageDraw.Draw(cell)
    frame = (_MARGIN, _MARGIN, _MARGIN + _IMAGE_SIDE, _MARGIN + _IMAGE_SIDE)
    try:
        pair = read_valid_pair(source, index)
        image = ImageOps.contain(decode_image(pair.image, pair.name), (_IMAGE_SIDE, _IMAGE_SIDE))
        cell.paste(image, (_MARGIN + (_IMAGE_SIDE - image.width) // 2, _MARGIN + (_IMAGE_SIDE - image.height) // 2))
        text, colour = pair.caption, "black"
    except BadSample as error:
        text, colour = str(error.cause), "firebrick"
        draw.line((*frame[:2], *frame[2:]), fill=colour)
    draw.rectangle(frame, outline="lightgrey" if colour == "black" else colour)
    lines = textwrap.wrap(text, _MAX_LETTERS, max_lines=_MAX_LINES, placeholder=" …")
    draw.multiline_text((_MARGIN, _IMAGE_SIDE + 2 * _MARGIN), "\n".join(lines), colour, font, spacing=2)
    return cell
