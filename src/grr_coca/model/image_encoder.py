"""The image encoder: a vision transformer without a class token (arXiv 2010.11929).

Shapes: B batch, P patch tokens in raster order, D width.
"""

from jaxtyping import Float
from torch import Tensor, nn


class ImageEncoder(nn.Module):
    """Pixels to patch tokens: embed the patches, add positions (or leave them to RoPE), blocks, final norm."""

    def __init__(
        self, patch_size: int, patch_embed: nn.Linear, position: nn.Module, blocks: nn.ModuleList, norm: nn.Module
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.patch_embed = patch_embed
        self.position = position
        self.blocks = blocks
        self.norm = norm

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B P D"]:
        """Encode images whose sides are the configured size."""
        x = self.position(self.patch_embed(patchify(images, self.patch_size)))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def patchify(images: Float[Tensor, "B 3 H W"], patch_size: int) -> Float[Tensor, "B P K"]:
    """Cut images into square patches, raster order; K = 3 · patch_size² pixels in the order channel, row, column."""
    rows = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # B 3 Gh p Gw p
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
