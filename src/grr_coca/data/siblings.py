"""Samples of equal captions: other images of the same thing."""

from collections import defaultdict

import numpy as np

from grr_coca.data.bad import BadSample
from grr_coca.data.captions import clean_caption
from grr_coca.data.pairs import PairSource

MIX_STREAM = 1001
"""Ends the seed of the draw of a sibling, so that it is independent of all other draws for the same sample."""


class Siblings:
    """For each sample of a source, the others whose first caption is the same."""

    def __init__(self, source: PairSource) -> None:
        by_caption: dict[str, list[int]] = defaultdict(list)
        for index in range(len(source)):
            try:
                by_caption[clean_caption(source.caption(index), source.name(index)).lower()].append(index)
            except BadSample:
                continue  # raised again when the pair is read
        self._groups = {index: group for group in by_caption.values() for index in group if len(group) > 1}

    def draw(self, sample: int, rng: np.random.Generator) -> int | None:
        """One of the siblings of a sample, or None where it has none."""
        others = [index for index in self._groups.get(sample, ()) if index != sample]
        return others[rng.integers(len(others))] if others else None
