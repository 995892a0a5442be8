"""What one training step sees: the batch that goes into the model, and what the model returns for the losses."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that counts in no loss."""


class Replacement(NamedTuple):
    """A bad sample in whose place another one was trained on.

    `cause` is one of `grr_coca.data.bad.Cause`; `name` tells the pair, `place` the shard, table or folder that it lies
    in; `sample` is its index in the source.
    """

    cause: str
    name: str
    place: str
    epoch: int
    sample: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Image-text pairs, padded to the longest caption.

    Shapes: B pairs, T text positions.

    `token_ids` rows are `[BOS] caption [EOS] [CLS]`, then padding; the [CLS] slot and the padding hold id 0,
    and `lengths` (the [CLS] slot counted) alone decides what is real. `labels[:, t]` is the token that
    position t must predict: the one shift of the whole code has been done. Pairs with equal `caption_ids`
    or equal `image_ids` say the same and are never negatives of each other. `replaced` are bad samples that others
    stand in for, `cut_captions` counts the captions that lost words to the context length.
    """

    images: Float[Tensor, "B 3 H W"]
    token_ids: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]
    labels: Int[Tensor, "B T-2"]
    caption_ids: Int[Tensor, " B"]
    image_ids: Int[Tensor, " B"]
    keys: tuple[str, ...]
    replaced: tuple[Replacement, ...] = ()
    cut_captions: int = 0
    kept_patches: Int[Tensor, "B K"] | None = None
    """Numbers of the K patches that patch dropout leaves of each image; None: all of them."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            images=move(self.images),
            token_ids=move(self.token_ids),
            lengths=move(self.lengths),
            labels=move(self.labels),
            caption_ids=move(self.caption_ids),
            image_ids=move(self.image_ids),
            kept_patches=None if self.kept_patches is None else move(self.kept_patches),
        )


class CoCaOutput(NamedTuple):
    """What the losses need of a forward pass over a batch.

    Shapes: B pairs, E joint embedding width, D width, M tokens of all captions that have a next token.

    Embeddings are of unit length. `states` are what the model's `lm_head` predicts next tokens from, caption after
    caption: in the order of the batch's labels that are not ignored.
    """

    image_embedding: Float[Tensor, "B E"]
    text_embedding: Float[Tensor, "B E"]
    states: Float[Tensor, "M D"]
