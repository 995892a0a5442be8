"""Pairs as tensors, and batches of them."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from grr_coca.batch import IGNORE_INDEX, Batch
from grr_coca.data.images import decode_image
from grr_coca.data.order import SampleRef
from grr_coca.data.pairs import PairSource, RawPair
from grr_coca.data.patch_dropout import STREAM
from grr_coca.data.preprocess import Augmentation, Preprocess
from grr_coca.data.tokenizer import CLS_SLOT, Tokenizer
from grr_coca.errors import UserError

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One pair, ready for a batch. `token_ids` is a row of `Tokenizer.encode_row`."""

    key: str
    image: Float[Tensor, "3 S S"]
    token_ids: list[int]
    caption_id: int
    image_id: int
    kept_patches: Int[Tensor, " K"] | None = None


class PairDataset(Dataset[Sample]):
    """Decoded, augmented and tokenized pairs of a source.

    Augmentation and patch dropout are functions of (seed, epoch, sample): neither the order of reading nor the number
    of workers changes what a sample looks like.
    """

    def __init__(
        self,
        source: PairSource,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        context_length: int,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        keep_patches: Callable[[np.random.Generator], Tensor] | None = None,
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.context_length = context_length
        self.augmentation = augmentation
        self.seed = seed
        self.keep_patches = keep_patches
        self._warned_of_length = False

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, ref: SampleRef) -> Sample:
        """The sample of a position in the order.

        Raises:
            UserError: the image is broken or the caption empty; names the pair.
        """
        pair = self.source[ref.sample]
        caption = clean_caption(pair.caption, pair.name)
        return Sample(
            key=pair.key,
            image=self._image(pair, ref),
            token_ids=self._tokens(caption, pair.name),
            caption_id=stable_id(caption.lower()),
            image_id=stable_id(pair.name),
            kept_patches=self._kept_patches(ref),
        )

    def _kept_patches(self, ref: SampleRef) -> Int[Tensor, " K"] | None:
        if self.keep_patches is None:
            return None
        return self.keep_patches(np.random.default_rng((self.seed, ref.epoch, ref.sample, STREAM)))

    def _image(self, pair: RawPair, ref: SampleRef) -> Float[Tensor, "3 S S"]:
        image = decode_image(pair.image, pair.name)
        if self.augmentation is None:
            return self.preprocess(image)
        rng = np.random.default_rng((self.seed, ref.epoch, ref.sample))
        return self.preprocess.normalize(self.augmentation(self.preprocess.square(image), rng))

    def _tokens(self, caption: str, name: str) -> list[int]:
        row = self.tokenizer.encode_row(caption, self.context_length)
        if len(row) == self.context_length and not self._warned_of_length:
            words = len(self.tokenizer.encode(caption))
            if words + 3 > self.context_length:
                self._warned_of_length = True
                log.warning(
                    "%s: caption of %d tokens cut to the context of %d (further ones are not reported)",
                    name,
                    words,
                    self.context_length - 3,
                )
        return row


def clean_caption(caption: str, name: str) -> str:
    """The caption with single spaces.

    Raises:
        UserError: nothing is left; names the pair.
    """
    caption = " ".join(caption.split())
    if not caption:
        raise UserError(f"{name}: the caption is empty; give it a word or remove the pair")
    return caption


def stable_id(text: str) -> int:
    """A 63-bit id of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad to the longest caption, and shift the labels: the one place where that is done."""
    token_ids, lengths = pad_rows([sample.token_ids for sample in samples])
    kept_patches = [sample.kept_patches for sample in samples if sample.kept_patches is not None]
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        token_ids=token_ids,
        lengths=lengths,
        labels=next_token_labels(token_ids, lengths),
        caption_ids=torch.tensor([sample.caption_id for sample in samples]),
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        keys=tuple(sample.key for sample in samples),
        kept_patches=torch.stack(kept_patches) if kept_patches else None,
    )


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor B T, and their lengths B."""
    lengths = torch.tensor([len(row) for row in rows])
    token_ids = torch.full((len(rows), int(lengths.max())), CLS_SLOT)
    for padded, row in zip(token_ids, rows, strict=True):
        padded[: len(row)] = torch.tensor(row)
    return token_ids, lengths


def next_token_labels(token_ids: Tensor, lengths: Tensor) -> Tensor:
    """What each position must predict, B T-2: the next word, or the end token after the last word.

    A row `[BOS] w₁ … wₙ [EOS] [CLS]` gives the labels `w₁ … wₙ [EOS]`; the rest is ignored.
    """
    labels = token_ids[:, 1:-1].clone()
    positions = torch.arange(labels.shape[1])
    labels[positions >= lengths[:, None] - 2] = IGNORE_INDEX
    return labels


class _Loader(DataLoader[Batch]):
    """A worker's `UserError` comes through as it was raised, without the worker's traceback in its message."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        try:
            yield from super().__iter__()
        except UserError as error:
            last = str(error).rstrip().rpartition("UserError: ")[2]
            raise UserError(last) from error


def make_loader(dataset: PairDataset, order: Sequence[list[SampleRef]] | object, num_workers: int) -> DataLoader[Batch]:
    """A loader of batches in a given order, see `grr_coca.data.order`."""
    return _Loader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=order,  # type: ignore[arg-type]
        collate_fn=collate,  # type: ignore[arg-type]
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
    )
