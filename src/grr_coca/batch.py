"""The input and output of a training step: the batch that goes into the model, and the model's output for the
losses."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORE_INDEX = -100
"""Label of padding, which has no loss. Every token of a caption must have a label."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Image-text pairs, padded to the longest caption.

    Shapes: B pairs, T text positions.

    A row of `token_ids` is `[BOS] caption [EOS] [CLS]`, then padding. The [CLS] slot and the padding hold id 0. Only
    `lengths`, which include the [CLS] slot, say which tokens are real. `labels[:, t]` is the token that position t must
    predict: labels are already shifted, and nothing shifts them again. Pairs with equal `caption_ids` or equal
    `image_ids` are never negatives of each other. `replaced`: the bad samples that were replaced by others.
    `cut_captions`: how many captions were cut to the context length.
    """

    images: Float[Tensor, "B 3 H W"]
    token_ids: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]
    labels: Int[Tensor, "B T-2"]
    caption_ids: Int[Tensor, " B"]
    image_ids: Int[Tensor, " B"]
    keys: tuple[str, ...]
    replaced: tuple["Replacement", ...] = ()
    cut_captions: int = 0
    kept_patches: Int[Tensor, "B K"] | None = None
    """The numbers of the K patches that patch dropout keeps of each image; None: all patches are kept."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def predicts_token(self) -> Bool[Tensor, "B L"]:
        """True at the L = T - 2 positions that must predict a token, False where the caption has ended."""
        return self.labels != IGNORE_INDEX

    @property
    def next_tokens(self) -> Int[Tensor, " M"]:
        """The tokens to predict, caption after caption: the order of the states of `CoCaOutput`."""
        return self.labels[self.predicts_token]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies it beside its other work.

        PyTorch's loaders call this.
        """
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, move: Callable[[Tensor], Tensor]) -> "Batch":
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
    """The output of a forward pass over a batch, as the losses need it.

    Shapes: B pairs, E joint embedding width, D width, M tokens (of all captions) that have a next token.

    Embeddings are of unit length. `lm_head` predicts the `next_tokens` of the batch from `states`, in the same order.
    """

    image_embedding: Float[Tensor, "B E"]
    text_embedding: Float[Tensor, "B E"]
    states: Float[Tensor, "M D"]


class Replacement(NamedTuple):
    """A bad sample that was replaced by another one in training.

    `cause` is one of `grr_coca.data.bad.Cause`. `name` is the name of the pair, `place` the shard, table or folder that
    it lies in, and `sample` its index in the source.
    """

    cause: str
    name: str
    place: str
    epoch: int
    sample: int
