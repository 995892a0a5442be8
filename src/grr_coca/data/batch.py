"""Input and output of a training step: the batch that the model reads, and its output for the losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Image-text pairs, padded to the longest caption.

    Shapes: B pairs, T text positions, M tokens to predict.

    A row of `token_ids` is `[BOS] caption [EOS] [CLS]`, then padding. The [CLS] slot and the padding hold id 0. Only
    `lengths`, which include the [CLS] slot, say which tokens are real. `next_tokens` are the tokens to predict, caption
    after caption, in the order of `CoCaOutput.states`: all but [BOS] and [CLS]. Pairs with equal `caption_ids` or equal
    `image_ids` are never negatives of each other. `replaced`: bad samples that were replaced by others.
    `cut_captions`: number of captions that were cut to the context length.

    `lengths` stay on the CPU: the shapes of the text decoder follow from them, and reading them from a GPU would wait
    for all work that was given to it.
    """

    images: Float[Tensor, "B 3 H W"]
    token_ids: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]
    next_tokens: Int[Tensor, " M"]
    caption_ids: Int[Tensor, " B"]
    image_ids: Int[Tensor, " B"]
    keys: tuple[str, ...]
    replaced: tuple["Replacement", ...] = ()
    cut_captions: int = 0
    kept_patches: Int[Tensor, "B K"] | None = None
    """Indices of the K patches of each image that patch dropout keeps; None: all patches are kept."""
    teacher: Float[Tensor, "B _"] | None = None
    """Embeddings of the captions by a text teacher, of unit length and any width; None: training without a teacher."""
    thing_ids: Int[Tensor, " B"] | None = None
    """Ids of the first captions. Pairs with equal ones show the same thing, so they are never negatives of each other
    either. None: training without siblings."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`, all but `lengths`."""
        return replace(self._with_each(lambda tensor: tensor.to(device, non_blocking=True)), lengths=self.lengths)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies it while it does other work.

        PyTorch's data loaders call this.
        """
        return self._with_each(Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of a batch on a device until a stream that was not that of its copies has used it."""
        for x in vars(self).values():
            if isinstance(x, Tensor) and x.device.type != "cpu":
                x.record_stream(stream)

    def _with_each(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        moved = {name: move(x) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]


class CoCaOutput(NamedTuple):
    """Output of the model for a batch, as the losses need it.

    Shapes: B pairs, E joint embedding width, D width, M tokens of all captions that have a next token.

    Embeddings are of unit length. `lm_head` predicts the `next_tokens` of the batch from `states`, in the same order.
    """

    image_embedding: Float[Tensor, "B E"]
    text_embedding: Float[Tensor, "B E"]
    states: Float[Tensor, "M D"]


class Replacement(NamedTuple):
    """A bad training sample that was replaced by another one.

    `cause`: a `grr_coca.data.sources.base.Cause`. `name`: name of the pair. `place`: its shard, table or folder.
    `sample`: its index in the source.
    """

    cause: str
    name: str
    place: str
    epoch: int
    sample: int


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B T"], Int[Tensor, " B"]]:
    """Pad rows of token ids with id 0 to one tensor. Also returns their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    token_ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for padded, row in zip(token_ids, rows, strict=True):
        padded[: len(row)] = torch.tensor(row)
    return token_ids, lengths
