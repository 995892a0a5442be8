"""The image encoder: a vision transformer (arXiv 2010.11929).

Shapes: B batch, P patch tokens in raster order, K patches that patch dropout keeps, R registers, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from grr_coca.model.attention import PLAIN, PlainLayout
from grr_coca.model.blocks import ConvStem, Patchify


class ImageEncoder(nn.Module):
    """Pixels to patch tokens: stem and patch embedding, positions (or leave them to RoPE), blocks, final norm.

    Registers (arXiv 2309.16588) are learned tokens without a position. They go through the blocks with the patches, and
    are dropped after the last block.
    """

    def __init__(
        self,
        *,
        stem: Patchify | ConvStem,
        patch_embed: nn.Linear,
        position: nn.Module,
        num_registers: int,
        blocks: nn.ModuleList,
        norm: nn.Module,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.patch_embed = patch_embed
        self.position = position
        self.registers = nn.Parameter(torch.zeros(num_registers, patch_embed.out_features)) if num_registers else None
        self.blocks = blocks
        self.norm = norm

    def forward(
        self, images: Float[Tensor, "B 3 H W"], kept_patches: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B P D"]:
        """Encode images of the configured size. With `kept_patches`, encode only these K patches of each image (FLIP,
        arXiv 2212.00794)."""
        # Under autocast the patch embedding is in bf16. Learned positions in fp32 would promote the sum, and RoPE would
        # not. Cast it back, so that the residual stream of every model is in fp32.
        patches = self.patch_embed(self.stem(images)).type_as(images)
        x = self.position(patches, PLAIN.positions)  # B P D
        if kept_patches is not None:
            x = x.take_along_dim(kept_patches[..., None], dim=1)  # B K D
        num_patches = x.shape[1]
        if self.registers is not None:
            x = torch.cat([x, self.registers.expand(x.shape[0], -1, -1)], dim=1)  # B P+R D
        layout = PLAIN
        if kept_patches is not None:
            # Registers have no position: at index P, the angles of RoPE's table are 0.
            num_registers = x.shape[1] - num_patches
            layout = PlainLayout(F.pad(kept_patches, (0, num_registers), value=patches.shape[1]))  # B K+R
        for block in self.blocks:
            x = block(x, layout)
        return self.norm(x[:, :num_patches])
