"""Siblings: samples with the same caption, so other images of the same thing.

Shapes: N samples of a source.
"""

import numpy as np
from jaxtyping import Int

from grr_coca.data.bad import BadSample
from grr_coca.data.sources.pairs import PairSource
from grr_coca.data.sources.strings import stable_id
from grr_coca.data.text import clean_caption


class Siblings:
    """For each sample of a source, the other samples with the same first caption.

    All captions are read once. 24 bytes per sample are kept.
    """

    def __init__(self, source: PairSource) -> None:
        captions = np.fromiter((_caption_id(source, index) for index in range(len(source))), np.int64, len(source))
        # Sorted by caption, the samples of one caption lie side by side.
        self._order: Int[np.ndarray, " N"] = np.argsort(captions, kind="stable")
        self._captions = captions
        self._sorted = captions[self._order]

    def draw(self, sample: int, rng: np.random.Generator) -> int | None:
        """A random sibling of a sample; None if it has none."""
        caption = self._captions[sample]
        if caption < 0:
            return None
        first, end = np.searchsorted(self._sorted, (caption, caption + 1))
        group = self._order[first:end]
        others = group[group != sample]
        return int(others[rng.integers(len(others))]) if len(others) else None


def _caption_id(source: PairSource, index: int) -> int:
    try:
        return stable_id(clean_caption(source.caption(index), source.name(index)).lower())
    except BadSample:
        return -1  # the error is raised again when the pair is read
