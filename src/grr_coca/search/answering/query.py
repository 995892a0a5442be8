"""A query (texts, pictures, and what must not be there), and its vector.

Shapes: N pictures of the sample, E embedding width.

The cosines of a picture with a text and with another picture lie at very different heights (pictures are closer to
pictures than to texts), so they cannot be added as they are. Each part is divided by the standard deviation of its
cosines over a sample of the library, so that it counts by how far a picture stands out. The sum is one vector again,
whose nearest pictures any store can find.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grr_coca.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from grr_coca.search.model import IndexModel

LEAST_DEVIATION = 1e-3
"""The smallest deviation that a part is divided by."""
WITHOUT_WEIGHT = 0.5
"""Weight of a text after --without. What is looked for weighs 1, unless the query says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """Texts and pictures that are looked for, and texts that are not.

    `weights`: one for each text, or none (each text then weighs 1). A picture weighs 1.

    Raises:
        UserError: nothing is looked for, a text is empty, or the weights are not as many as the texts.
    """

    texts: tuple[str, ...] = ()
    images: "tuple[str | Path | Image.Image, ...]" = ()
    without: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.texts and not self.images:
            raise UserError("the query is empty; give words to look for, or a picture by --image")
        for text in (*self.texts, *self.without):
            if not text.strip():
                raise UserError("the query is empty: a text of spaces says nothing; give words to look for")
        if self.weights and len(self.weights) != len(self.texts):
            raise UserError(f"{len(self.weights)} weights for {len(self.texts)} texts; give one for each text, or none")
        if any(not (weight > 0 and np.isfinite(weight)) for weight in self.weights):
            raise UserError("a weight must be above 0; what must not be there goes after --without")

    @property
    def words(self) -> str | None:
        """All texts, for the full-text index; None for a query that it cannot answer, because it is not words alone."""
        return None if self.images or self.without or self.weights else " ".join(self.texts)


def query_vector(query: Query, model: "IndexModel", sample: np.ndarray) -> np.ndarray:
    """The vector of unit length whose nearest pictures answer a query.

    Args:
        query: what is asked for.
        model: the model of the index.
        sample: embeddings of some pictures of the library, N E.

    Raises:
        UserError: a picture of the query cannot be read, or the query asks for what it leaves out.
    """
    parts: list[tuple[float, np.ndarray]] = []
    if query.texts or query.without:
        embedded = model.embed_texts([*query.texts, *query.without])
        weights = [*(query.weights or (1.0,) * len(query.texts)), *(-WITHOUT_WEIGHT,) * len(query.without)]
        parts += zip(weights, embedded, strict=True)
    if query.images:
        parts += ((1.0, embedding) for embedding in model.embed_images(list(query.images)))
    return combined(parts, sample)


def combined(parts: list[tuple[float, np.ndarray]], sample: np.ndarray) -> np.ndarray:
    """The weighted sum of embeddings, each divided by the deviation of its products with the sample; of unit length.

    Raises:
        UserError: the parts cancel each other, so the query asks for what it leaves out.
    """
    if len(parts) == 1:
        return parts[0][1]
    total = np.zeros_like(parts[0][1])
    for weight, embedding in parts:
        deviation = float((sample @ embedding).std()) if len(sample) > 1 else 1.0
        total = total + weight / max(deviation, LEAST_DEVIATION) * embedding
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise UserError("the query asks for what it leaves out; nothing is left to look for")
    return (total / length).astype(np.float32)
