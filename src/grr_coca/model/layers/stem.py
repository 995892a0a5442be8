"""The stem of the image encoder: from pixels to one vector of features for each patch, in raster order.

A linear map, `patch_embed`, then takes these to the width of the encoder. After `Patchify` that is the patch embedding
of ViT, after `ConvStem` the 1x1 convolution that ends a convolutional stem.

Shapes: B images of S pixels a side, C input and O output channels, H height, W width, P patches of K features.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Patchify(nn.Module):
    """Cuts images into square patches. The features of a patch are its pixels: K = 3 · patch_size²."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_features = 3 * patch_size**2

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B P K"]:
        """The pixels of each patch: channel, row, column."""
        rows = images.unflatten(3, (-1, self.patch_size)).unflatten(2, (-1, self.patch_size))  # B 3 Gh p Gw p
        return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class ConvStem(nn.Module):
    """Convolutions that halve height and width until one position is left for each patch (arXiv 2106.14881).

    Each is followed by a norm and ReLU. Patches see some pixels of their neighbours. The number of channels doubles
    from each convolution to the next, up to the width of the encoder: K = embed_dim.

    The paper has BatchNorm. Its means are over the images that are computed together, so losses and gradients would
    change with micro-batches and with the number of processes. The norm of the encoder, over the channels of each
    position, depends on nothing else.
    """

    def __init__(self, patch_size: int, embed_dim: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_features = embed_dim
        halvings = patch_size.bit_length() - 1
        assert patch_size == 2**halvings, "the config refuses this"
        channels = [3, *(max(1, embed_dim >> halving) for halving in reversed(range(halvings)))]
        self.stages = nn.ModuleList(
            ConvStage(Convolution(before, after), norm(after)) for before, after in pairwise(channels)
        )

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B P K"]:
        """The features of each patch."""
        # Each norm reads the channels of a position, so they lie together from the first convolution on.
        x = images.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
        return x.flatten(2).mT


class ConvStage(nn.Module):
    """A convolution that halves height and width, a norm over the channels of each position, and ReLU."""

    def __init__(self, conv: "Convolution", norm: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O H/2 W/2"]:
        """Run the stage."""
        return F.relu(self.norm(self.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Convolution(nn.Linear):
    """A 3x3 convolution of stride 2, padded with zeros.

    Its weight is the matrix (O, 9 · C) that multiplies the 3 x 3 x C inputs of each output, in the order channel, row,
    column. So it is drawn, decayed and updated as all matrices are. Muon's author flattens convolutions in the same way
    (kellerjordan.github.io/posts/muon).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(9 * in_channels, out_channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O H/2 W/2"]:
        """Convolve images of even height and width."""
        return F.conv2d(x, self.weight.unflatten(1, (-1, 3, 3)), self.bias, stride=2, padding=1)
