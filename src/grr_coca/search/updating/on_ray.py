"""Describes pictures of an index on a Ray cluster. One process, the one that asked, writes the index."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from grr_coca.inference.on_ray import map_on_ray
from grr_coca.search.entry import Failure
from grr_coca.search.updating.describe import DecodedPicture, Found, decode_found, describe_squares


class RayDescriber:
    """Reads and describes pictures where the workers are.

    Args:
        folder: the checkpoint, a folder that every machine sees.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, found: Iterator[Found], batch_size: int) -> Iterator[list[DecodedPicture | Failure]]:
        """Pictures with what the model says of them."""
        return map_on_ray(found, partial(_worker, self._folder), batch_size)

    def describe(self, decoded: Sequence[DecodedPicture]) -> list[tuple[str, np.ndarray]]:
        """Captions and embeddings, which the workers computed already."""
        return [one.said for one in decoded if one.said is not None]


def _worker(folder: Path) -> Callable[[Sequence[Found]], list[DecodedPicture | Failure]]:
    from grr_coca.inference.model import load

    model = load(folder)
    preprocess = model.checkpoint.preprocess

    def work(batch: Sequence[Found]) -> list[DecodedPicture | Failure]:
        read = [decode_found(found, preprocess) for found in batch]
        squares = [one.square for one in read if isinstance(one, DecodedPicture) and one.square is not None]
        said = iter(describe_squares(model, squares) if squares else [])
        return [one if isinstance(one, Failure) else replace(one, square=None, said=next(said)) for one in read]

    return work
