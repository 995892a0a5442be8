"""Samples of equal captions: other images of the same thing.

Shapes: N samples of a source.
"""

import numpy as np
from jaxtyping import Int

from grr_coca.data.bad import BadSample
from grr_coca.data.sources.pairs import PairSource
from grr_coca.data.sources.strings import stable_id
from grr_coca.data.text import clean_caption

MIX_STREAM = 1001
"""Ends the seed of the draw of a sibling, so that it is independent of all other draws for the same sample."""


class Siblings:
    """For each sample of a source, the others whose first caption is the same.

    All captions are read once; what is kept of them is 24 bytes a sample.
    """

    def __init__(self, source: PairSource) -> None:
        captions = np.fromiter((_caption_id(source, index) for index in range(len(source))), np.int64, len(source))
        # Equal captions lie side by side; a group is what is between its first and the next one's.
        self._order: Int[np.ndarray, " N"] = np.argsort(captions, kind="stable")
        self._captions = captions
        self._sorted = captions[self._order]

    def draw(self, sample: int, rng: np.random.Generator) -> int | None:
        """One of the siblings of a sample, or None where it has none."""
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
        return -1  # raised again when the pair is read
