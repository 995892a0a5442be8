"""Views of sources: several as one, every caption on its own, the sound pairs alone, captions as text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from grr_coca.data.bad import BadSample
from grr_coca.data.images import decode_image
from grr_coca.data.sources.pairs import PairSource, RawPair, Subset
from grr_coca.data.text import clean_caption


class Chain:
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[PairSource]) -> None:
        self._sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        source, inner = self._locate(index)
        return source[inner]

    def caption(self, index: int) -> str:
        """Read one caption, the first, and not its image."""
        source, inner = self._locate(index)
        return source.caption(inner)

    def captions(self, index: int) -> tuple[str, ...]:
        """Read all captions of one image, and not the image."""
        source, inner = self._locate(index)
        return source.captions(inner)

    def name(self, index: int) -> str:
        """Where a pair lies, for messages."""
        source, inner = self._locate(index)
        return source.name(inner)

    def place(self, index: int) -> str:
        """The shard, table or folder that a pair lies in."""
        source, inner = self._locate(index)
        return source.place(inner)

    def _locate(self, index: int) -> tuple[PairSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[number], index - (int(self._ends[number - 1]) if number else 0)


class EveryCaption:
    """A source in which each caption of an image makes a pair of its own, those of one image one after another.

    For evaluation: all captions count in the losses, and as pairs of one image they have one image id, so that
    retrieval takes any of them as right and none as a negative of another.
    """

    def __init__(self, source: PairSource) -> None:
        self._source = source
        counts = [num_captions(source, index) for index in range(len(source))]
        self._ends = np.cumsum(np.asarray(counts, dtype=np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        image, caption = self._locate(index)
        pair = self._source[image]
        return replace(pair, caption=pair.captions[caption], more_captions=())

    def caption(self, index: int) -> str:
        """Read one caption, and not its image."""
        image, caption = self._locate(index)
        return self._source.captions(image)[caption]

    def captions(self, index: int) -> tuple[str, ...]:
        """The one caption of a pair."""
        return (self.caption(index),)

    def name(self, index: int) -> str:
        """Where a pair lies, for messages."""
        return self._source.name(self._locate(index)[0])

    def place(self, index: int) -> str:
        """The shard, table or folder that a pair lies in."""
        return self._source.place(self._locate(index)[0])

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = int(np.searchsorted(self._ends, index, side="right"))
        return image, index - (int(self._ends[image - 1]) if image else 0)


def every_caption(source: PairSource) -> PairSource:
    """The source with each caption as a pair of its own; the source itself where no image has more than one.

    Reads all captions.
    """
    view = EveryCaption(source)
    return source if len(view) == len(source) else view


def sound_pairs(source: PairSource, on_pair: Callable[[int], None] = lambda _: None) -> tuple[Subset, list[BadSample]]:
    """The pairs whose image decodes and whose captions are there, and what is wrong with the others.

    Evaluation stops at a bad pair, because numbers of a split that has silently shrunk compare with nothing. What
    must go on all the same, such as the validation of a long run, evaluates on this, and says how many are missing.

    Args:
        source: read and decoded once, from the first pair to the last.
        on_pair: called with the number of pairs done.
    """
    sound, bad = [], []
    for index in range(len(source)):
        try:
            read_sound(source, index)
            sound.append(index)
        except BadSample as error:
            bad.append(error)
        on_pair(index + 1)
    return Subset(source, sound), bad


def read_sound(source: PairSource, index: int) -> RawPair:
    """One pair that has been decoded and found sound.

    Raises:
        BadSample: it is not.
    """
    pair = source[index]
    for caption in pair.captions:
        clean_caption(caption, pair.name)
    decode_image(pair.image, pair.name)
    return pair


def caption_texts(source: PairSource, limit: int | None = None) -> Iterator[str]:
    """Clean captions of a source, all that an image has, for training a tokenizer; those of bad pairs are left out.

    Args:
        source: its captions are read, and no image.
        limit: read those of so many images, spread evenly; None: of all.
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
    """How many captions an image has; 1 if they cannot be read, which is said when the pair is."""
    try:
        return len(source.captions(index))
    except BadSample:
        return 1
