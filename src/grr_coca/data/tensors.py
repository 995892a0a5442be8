"""Images as tensors: what PyTorch trains on, and what its models take.

Shapes: B images, S image size in pixels.
"""

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from grr_coca.data.preprocess import Preprocess


def to_bytes(image: Image.Image, preprocess: Preprocess) -> UInt8[Tensor, "3 S S"]:
    """Pixel values 0 … 255 of an RGB image of any size, cut and resized."""
    return torch.from_numpy(preprocess(image)).permute(2, 0, 1).contiguous()


def to_input(image: Image.Image, preprocess: Preprocess) -> Float[Tensor, "3 S S"]:
    """The input of a model for an RGB image of any size. Its values are in -1 … 1 by default."""
    return normalize(to_bytes(image, preprocess).float().div_(255), preprocess)


def normalize(pixels: Float[Tensor, "*B 3 S S"], preprocess: Preprocess) -> Float[Tensor, "*B 3 S S"]:
    """Normalize pixel values 0 … 1: subtract the mean of the channel, and divide by its standard deviation."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device)[:, None, None]
        for values in (preprocess.mean, preprocess.std)
    )
    return (pixels - mean).div_(std)
