"""The batch: everything that one training step sees."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that counts in no loss."""


@dataclass(frozen=True)
class Batch:
    """Image-text pairs, padded to the longest caption.

    Shapes: B pairs, T text positions.

    `token_ids` rows are `[BOS] caption [EOS] [CLS]`, then padding; the [CLS] slot and the padding hold id 0,
    and `lengths` (the [CLS] slot counted) alone decides what is real. `labels[:, t]` is the token that
    position t must predict: the one shift of the whole code has been done. Pairs with equal `caption_ids`
    or equal `image_ids` say the same and are never negatives of each other.
    """

    images: Float[Tensor, "B 3 H W"]
    token_ids: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]
    labels: Int[Tensor, "B T-2"]
    caption_ids: Int[Tensor, " B"]
    image_ids: Int[Tensor, " B"]
    keys: tuple[str, ...]
    kept_patches: Int[Tensor, "B K"] | None = None
    """Numbers of the K patches that patch dropout leaves of each image; None: all of them."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            images=move(self.images),
            token_ids=move(self.token_ids),
            lengths=move(self.lengths),
            labels=move(self.labels),
            caption_ids=move(self.caption_ids),
            image_ids=move(self.image_ids),
            keys=self.keys,
            kept_patches=None if self.kept_patches is None else move(self.kept_patches),
        )
