"""Images of which it is known where the model must look."""

import torch

COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "black": (-1, -1, -1)}
SIDE, PATCH = 4, 4


def scene(place: int, colour: str) -> torch.Tensor:
    """A white image, 16 × 16, with one coloured patch."""
    image = torch.ones(3, SIDE * PATCH, SIDE * PATCH)
    row, column = divmod(place, SIDE)
    square = image[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
    square.copy_(torch.tensor(COLOURS[colour], dtype=torch.float32)[:, None, None])
    return image
