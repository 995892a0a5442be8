"""Which pairs of a source are of one image. A table may have a row for each caption."""

import numpy as np
from jaxtyping import Int

from grr_coca.data.sources.folder import ImageFolder
from grr_coca.data.sources.pairs import PairSource
from grr_coca.data.sources.shards.source import TarShards
from grr_coca.data.sources.strings import stable_id


def image_numbers(source: PairSource) -> Int[np.ndarray, " N"]:
    """The image of each pair, as a number. Images are numbered in the order of their first pairs."""
    if isinstance(source, TarShards | ImageFolder):
        return np.arange(len(source))  # each pair has an image of its own; millions of names would take minutes
    ids = np.fromiter((stable_id(source.image_name(index)) for index in range(len(source))), np.int64, len(source))
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return first.argsort().argsort()[inverse]


class ByImage:
    """The pairs of each image, in the order of their first pairs. Item `i`: the indices in `source` of those of image
    `i`. This asks for the names of all images."""

    def __init__(self, source: PairSource) -> None:
        self.source = source
        numbers = image_numbers(source)
        self._pairs = numbers.argsort(kind="stable")
        self._ends = np.bincount(numbers).cumsum()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, image: int) -> list[int]:
        start = int(self._ends[image - 1]) if image else 0
        return self._pairs[start : int(self._ends[image])].tolist()
