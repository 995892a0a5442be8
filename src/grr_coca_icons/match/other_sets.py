"""Find the equivalents of each icon in the other icon sets of its library.

For each icon, only the `MAX_SETS` sets with the most similar images are searched, because most of a hundred sets have
no similar icon.

Shapes: N images of all sets, S sets.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from grr_coca_icons.match.candidates import PictureSet, match_pictures
from grr_coca_icons.match.match_numbers import MatchParameters

MAX_SETS = 10
"""Maximum number of other sets in which an equivalent of an icon is searched for. These are the sets with the most
similar images."""
MIN_PROBABILITY = 0.3
"""Minimum probability of a set's best candidate for it to count as an equivalent."""


class Equivalent(NamedTuple):
    """Icon of the same concept in another set: its row among all images, and the probability that it is the
    equivalent."""

    row: int
    probability: float


class CrossSetMatcher:
    """Icon sets of a library, for finding equivalents between them.

    Args:
        pictures: Images of all sets. The set of an image is the part of its name before the colon.
        numbers: Parameters of the model that computed the embeddings.
    """

    def __init__(self, pictures: PictureSet, numbers: MatchParameters) -> None:
        by_set: dict[str, list[int]] = defaultdict(list)
        for image, name in enumerate(pictures.names):
            by_set[name.partition(":")[0]].append(image)
        self._sets = [pictures.part(images) for images in by_set.values()]
        self._images_by_set = [np.array(images) for images in by_set.values()]
        self._weights = numbers.with_names if pictures.has_names else numbers.without_names
        self._cells = {
            image: (number, row)
            for number, images in enumerate(self._images_by_set)
            for row, image in enumerate(images)
        }

    def equivalents_of(self, image: int) -> list[Equivalent]:
        """Return the equivalents of the image in a row, at most one in each other set, most likely first."""
        number, row = self._cells[image]
        return self._find_equivalents(number, [row])[image]

    def all_equivalents(self, on_progress: Callable[[int, int], object] = lambda *_: None) -> list[list[Equivalent]]:
        """Return the equivalents of each image, as `equivalents_of` does.

        Args:
            on_progress: Function that is called with the numbers of finished sets and of all sets.
        """
        found: dict[int, list[Equivalent]] = {}
        for number, source in enumerate(self._sets):
            found |= self._find_equivalents(number, range(len(source)))
            on_progress(number + 1, len(self._sets))
        return [found[image] for image in range(len(found))]

    def _find_equivalents(self, number: int, rows: Sequence[int]) -> dict[int, list[Equivalent]]:
        """Return the equivalents of the images in some rows of a set, by the images' rows among all images."""
        source, images = self._sets[number], self._images_by_set[number]
        near = self._near_sets(number, rows)
        found: dict[int, list[Equivalent]] = {int(images[row]): [] for row in rows}
        for other, (target, target_images) in enumerate(zip(self._sets, self._images_by_set, strict=True)):
            requested = [row for row, is_near in zip(rows, near[:, other], strict=True) if is_near]
            for match in match_pictures(source, target, self._weights, n=1, rows=requested) if requested else ():
                best = match.best
                if best is not None and best.probability is not None and best.probability >= MIN_PROBABILITY:
                    equivalent = Equivalent(int(target_images[best.row]), best.probability)
                    found[int(images[match.row])].append(equivalent)
        return {image: sorted(equivalents, key=lambda one: -one.probability) for image, equivalents in found.items()}

    def _near_sets(self, own: int, rows: Sequence[int]) -> np.ndarray:
        """Return a mask (N S) of the sets in which to search for equivalents of each of the given images of a set."""
        vectors = self._sets[own].vectors[list(rows)]
        nearest = np.stack([(vectors @ one.vectors.T).max(axis=1) for one in self._sets], axis=1)
        nearest[:, own] = -np.inf
        count = min(MAX_SETS, len(self._sets) - 1)
        limits = -np.sort(-nearest, axis=1)[:, count - 1 : count] if count else np.full((len(nearest), 1), np.inf)
        return nearest >= limits
