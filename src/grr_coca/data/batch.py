"""Input of a training step: a batch of image-text pairs, and its copy to a device while the device computes.

Functions for single images return the same tensors without the dimension B.

Shapes: B images or pairs, S image size in pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from grr_coca.data.preprocess import Preprocess


def to_uint8_pixels(image: Image.Image, preprocess: Preprocess) -> UInt8[Tensor, "3 S S"]:
    """Return the preprocessed pixels of an RGB image of any size, with values 0 … 255.

    Raises:
        BadSample: If `preprocess` rejects the image; see `Preprocess.square`.
    """
    return torch.from_numpy(preprocess(image)).permute(2, 0, 1).contiguous()


def to_input(image: Image.Image, preprocess: Preprocess) -> Float[Tensor, "3 S S"]:
    """Return the model input for an RGB image of any size. With the default mean and std, its values are in -1 … 1.

    Raises:
        BadSample: If `preprocess` rejects the image; see `Preprocess.square`.
    """
    return normalize(to_uint8_pixels(image, preprocess).float().div_(255), preprocess)


def normalize(pixels: Float[Tensor, "*B 3 S S"], preprocess: Preprocess) -> Float[Tensor, "*B 3 S S"]:
    """Normalize pixel values 0 … 1 by the mean and the standard deviation of each channel."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device)[:, None, None]
        for values in (preprocess.mean, preprocess.std)
    )
    return (pixels - mean).div_(std)


class FeatureTokens(NamedTuple):
    """Image tokens from a frozen encoder. Shapes: B images, N tokens, X token width.

    `mask` marks the valid tokens, at least one per image; all others are padding. None means that all tokens are valid.
    """

    tokens: Float[Tensor, "B N X"]
    mask: Bool[Tensor, "B N"] | None = None

    def map_tensors(self, move: Callable[[Tensor], Tensor]) -> "FeatureTokens":
        """Return the results of a function, such as a copy to a device, for all tensors."""
        return FeatureTokens(move(self.tokens), None if self.mask is None else move(self.mask))

    @classmethod
    def pad(cls, rows: Sequence[Float[Tensor, "_ X"]]) -> "FeatureTokens":
        """Pad the tokens of at least one image with zeros to the same length, and stack them in one tensor."""
        lengths = torch.tensor([len(row) for row in rows])
        tokens = rows[0].new_zeros(len(rows), int(lengths.max()), rows[0].shape[1])
        for padded, row in zip(tokens, rows, strict=True):
            padded[: len(row)] = row
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        return cls(tokens, None if mask.all() else mask)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Image-text pairs, padded to the longest caption.

    Shapes: B pairs, T text positions, M tokens to predict.

    A row of `token_ids` is `[BOS] caption [EOS] [CLS]`, followed by padding. The [CLS] slot and the padding contain id
    0. Therefore, only `lengths`, which include the [CLS] slot, show where the padding begins. `next_tokens` are the
    tokens to predict, which are all tokens except [BOS] and [CLS], caption after caption in the order of the model's
    states. Pairs with equal `caption_ids` or equal `image_ids` are never negatives of each other. `replaced` lists the
    bad samples that were replaced. `cut_captions` is the number of captions truncated to the context length.

    `lengths` stay on the CPU, because the shapes of the text decoder depend on them, and reading them from a GPU would
    wait until the GPU has finished all queued work.
    """

    images: Float[Tensor, "B 3 H W"]
    """Pixels for the model's image encoder; H = W = 0 if the model has no image encoder."""
    token_ids: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]
    next_tokens: Int[Tensor, " M"]
    caption_ids: Int[Tensor, " B"]
    image_ids: Int[Tensor, " B"]
    keys: tuple[str, ...]
    replaced: tuple["Replacement", ...] = ()
    cut_captions: int = 0
    kept_patches: Int[Tensor, "B K"] | None = None
    """Indices of the K patches of each image that patch dropout keeps. None means that all patches are kept."""
    teacher: Float[Tensor, "B _"] | None = None
    """Embeddings of the captions by a text teacher, of unit length and any width. None if no teacher is used."""
    concept_ids: Int[Tensor, " B"] | None = None
    """Id of the first caption of each image. Pairs with equal ids show the same concept, so they are also never
    negatives of each other. None if siblings are not used."""
    features: FeatureTokens | None = None
    """Features from a frozen encoder. None if the model has no frozen encoder, or the features are not yet computed."""
    encoder_pixels: UInt8[Tensor, "B S S 3"] | None = None
    """Pixels for the frozen encoder, if it must still compute the features."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on `device`, except `lengths`, which stay on the CPU.

        Copies from page-locked memory to a GPU are asynchronous.
        """
        return replace(self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True)), lengths=self.lengths)

    def pin_memory(self) -> "Batch":
        """Copy the batch to page-locked memory, from which a GPU can copy it asynchronously.

        PyTorch's data loaders call this method.
        """
        return self._map_tensors(Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the device memory of the batch until `stream`, which is not the copy stream, has used the batch."""
        for x in (*vars(self).values(), *(self.features or ())):
            if isinstance(x, Tensor) and x.device.type != "cpu":
                x.record_stream(stream)

    def _map_tensors(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        map_tensors = {name: move(x) for name, x in vars(self).items() if isinstance(x, Tensor)}
        features = None if self.features is None else self.features.map_tensors(move)
        return replace(self, **map_tensors, features=features)  # type: ignore[arg-type]


class Replacement(NamedTuple):
    """A bad training sample that was replaced.

    Attributes:
        cause: Reason why the sample is bad.
        name: Name of the pair.
        container: Shard, table or folder that contains the pair.
        epoch: Epoch in which the sample was read.
        sample: Index of the pair in the source.
    """

    cause: str
    name: str
    container: str
    epoch: int
    sample: int


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B T"], Int[Tensor, " B"]]:
    """Pad rows of token ids with id 0 to the longest row, and return them in one tensor with the length of each row."""
    lengths = torch.tensor([len(row) for row in rows])
    token_ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for padded, row in zip(token_ids, rows, strict=True):
        padded[: len(row)] = torch.tensor(row)
    return token_ids, lengths


def copy_ahead(steps: Iterable[Sequence[Batch]], device: torch.device) -> Iterator[Sequence[Batch]]:
    """Yield the micro-batches of each step. If the device is the CPU, the steps are unchanged.

    If a step has one micro-batch, the micro-batch is already on the device, and copying the next step has begun.

    If a step has several micro-batches, they stay on the CPU until each is needed, because the purpose of splitting a
    step is to keep only one micro-batch in device memory.

    If `steps` raises an error, the steps before the error are yielded first.
    """
    if device.type == "cpu":
        yield from steps
        return
    copies, iterator, ready = _Copies(device), iter(steps), None
    while True:
        try:
            upcoming = next(iterator, None)
        except Exception:
            if ready is not None:
                yield copies.wait_for(*ready)
            raise
        begun = None if upcoming is None else copies.begin(upcoming)
        if ready is not None:
            yield copies.wait_for(*ready)
        if begun is None:
            return
        ready = begun


class _Copies:
    """Copies of batches to a device.

    On CUDA, the copies use a separate stream, and overlap with computation if the memory is pinned.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, step: Sequence[Batch]) -> tuple[Sequence[Batch], torch.cuda.Event | None]:
        """Start copying a step. Return its micro-batches and, on CUDA, the event that marks the end of the copy."""
        if len(step) > 1:
            return step, None
        if self._stream is None:
            return [batch.to(self._device) for batch in step], None
        with torch.cuda.stream(self._stream):
            return [batch.to(self._device) for batch in step], self._stream.record_event()

    def wait_for(self, step: Sequence[Batch], copied: torch.cuda.Event | None) -> Sequence[Batch]:
        """Make the device wait for a copy, without blocking the caller."""
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for batch in step:
                batch.record_stream(stream)
        return step
