"""From pairs to samples, and from samples to a batch: decoding, augmentation, tokenization, padding and labels.

Shapes: B samples, T positions, S image size in pixels, K kept patches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from grr_coca.common.errors import UserError
from grr_coca.data.augmentation import Augmentation, Change
from grr_coca.data.batch import Batch, Replacement, pad_rows
from grr_coca.data.order import SampleRef
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.random_changes import (
    MAX_REPLACEMENTS,
    Siblings,
    Stream,
    change_images,
    mix_images,
    sample_rng,
    with_neighbour,
)
from grr_coca.data.sources.base import BadSample, PairSource, RawPair, stable_id
from grr_coca.data.tensors import normalize, to_bytes, to_input
from grr_coca.data.text import caption_id, clean_caption
from grr_coca.data.tokenizer import NUM_SPECIAL_TOKENS, Tokenizer

_MAX_KEPT_PIXELS = 2**26
"""If all training images together have at most this many pixels, they stay decoded in memory: 192 MiB per worker."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A pair that is ready for a batch. `token_ids`: a row of `Tokenizer.encode_row`.

    If `change` is given, it is not applied yet, and `image` has values 0 … 255.
    """

    key: str
    image: Float[Tensor, "3 S S"] | UInt8[Tensor, "3 S S"]
    token_ids: list[int]
    caption_id: int
    image_id: int
    thing_id: int | None = None
    is_cut: bool = False
    replaced: Replacement | None = None
    kept_patches: Int[Tensor, " K"] | None = None
    change: Change | None = None


class PairDataset(Dataset[Sample]):
    """The samples of a source: its pairs, decoded, augmented and tokenized.

    With an augmentation, it is for training. The caption of an image with several, the change of the image, and the
    sample that replaces a bad one are functions of seed, epoch and sample. So a sample does not depend on the order of
    reading or on the number of workers.

    Without an augmentation, it is for evaluation. It gives the first caption and the unchanged image, and a bad sample
    is an error, because scores on a smaller split cannot be compared.
    """

    def __init__(
        self,
        source: PairSource,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        context_length: int,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        keep_patches: Callable[[np.random.Generator], Tensor] | None = None,
        first_caption: float = 0.0,
        has_siblings: bool = False,
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.context_length = context_length
        self.augmentation = augmentation
        self.seed = seed
        self.keep_patches = keep_patches
        self.first_caption = first_caption
        self.has_siblings = has_siblings
        self._siblings = Siblings(source) if augmentation is not None and augmentation.mixes else None
        self._keeps_all = augmentation is not None and len(source) * preprocess.image_size**2 <= _MAX_KEPT_PIXELS
        self._pairs: dict[int, RawPair] = {}  # without image bytes: `_squares` has the decoded images
        self._squares: dict[int, UInt8[Tensor, "3 S S"]] = {}
        self._words: dict[str, list[int]] = {}
        self._last: tuple[bytes, Float[Tensor, "3 S S"]] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, ref: SampleRef) -> Sample:
        """Read one sample. In training, a bad sample is replaced by another one.

        Raises:
            BadSample: in evaluation, the image is broken or the caption is missing; the message names the pair.
            UserError: in training, no good sample is found.
        """
        return self.__getitems__([ref])[0]

    def __getitems__(self, refs: Sequence[SampleRef]) -> list[Sample]:
        """Read the samples of a batch, and change their images together. The loader of torch calls this."""
        samples = [self._sound_sample(ref) for ref in refs]
        changes = [sample.change for sample in samples if sample.change is not None]
        if not changes:
            return samples
        images = normalize(change_images(torch.stack([sample.image for sample in samples]), changes), self.preprocess)
        return [replace(sample, image=image, change=None) for sample, image in zip(samples, images, strict=True)]

    def _sound_sample(self, ref: SampleRef) -> Sample:
        try:
            return self._sample(ref)
        except BadSample as error:
            if self.augmentation is None:
                raise
            place = self.source.place(ref.sample)
            replaced = Replacement(error.cause, self.source.name(ref.sample), place, ref.epoch, ref.sample)
            return replace(self._stand_in(ref, error), replaced=replaced)

    def _stand_in(self, ref: SampleRef, first: BadSample) -> Sample:
        for attempt in range(MAX_REPLACEMENTS):
            rng = sample_rng(self.seed, ref, Stream.REPLACEMENT + attempt)
            try:
                return self._sample(SampleRef(ref.epoch, int(rng.integers(len(self.source)))))
            except BadSample:
                continue
        raise UserError(
            f"{first}; and {MAX_REPLACEMENTS} other samples are bad too; `grr-coca data check` lists what is wrong"
        )

    def _sample(self, ref: SampleRef) -> Sample:
        pair = self._pairs.get(ref.sample) or self.source[ref.sample]
        caption = clean_caption(self._draw(pair.captions, ref), pair.name)
        words = self._encode(caption)
        image = self._image(pair, ref)
        if self._keeps_all and ref.sample not in self._pairs:
            self._pairs[ref.sample] = replace(pair, image=b"")
        return Sample(
            key=pair.key,
            image=image,
            change=self._change(ref),
            token_ids=self.tokenizer.row(words, self.context_length),
            caption_id=caption_id(caption),
            image_id=stable_id(pair.image_name or pair.name),
            thing_id=caption_id(clean_caption(pair.captions[0], pair.name)) if self.has_siblings else None,
            is_cut=len(words) + NUM_SPECIAL_TOKENS > self.context_length,
            kept_patches=self._kept_patches(ref),
        )

    def _kept_patches(self, ref: SampleRef) -> Int[Tensor, " K"] | None:
        if self.keep_patches is None:
            return None
        return self.keep_patches(sample_rng(self.seed, ref, Stream.PATCHES))

    def _draw(self, captions: tuple[str, ...], ref: SampleRef) -> str:
        if len(captions) == 1 or self.augmentation is None:
            return captions[0]
        rng = sample_rng(self.seed, ref, Stream.CAPTION)
        if self.first_caption and rng.uniform() < self.first_caption:
            return captions[0]
        return captions[rng.integers(len(captions))]

    def _encode(self, caption: str) -> list[int]:
        words = self._words.get(caption) or self.tokenizer.encode(caption)
        if self._keeps_all:
            self._words[caption] = words
        return words

    def _image(self, pair: RawPair, ref: SampleRef) -> Tensor:
        if self.augmentation is None:
            return self._evaluated(pair)
        return self._beside_another(self._mixed(self._square(ref.sample, pair), ref), ref)

    def _evaluated(self, pair: RawPair) -> Float[Tensor, "3 S S"]:
        # The captions of an image are consecutive, so it is decoded only for the first of them.
        if self._last is None or self._last[0] != pair.image:
            image = self.preprocess.decode(pair.image, pair.name, to_srgb=False)
            self._last = pair.image, to_input(image, self.preprocess)
        return self._last[1]

    def _change(self, ref: SampleRef) -> Change | None:
        if self.augmentation is None:
            return None
        return self.augmentation.draw(sample_rng(self.seed, ref))

    def _square(self, sample: int, pair: RawPair | None = None) -> UInt8[Tensor, "3 S S"]:
        square = self._squares.get(sample)
        if square is None:
            pair = pair or self.source[sample]
            square = to_bytes(self.preprocess.decode(pair.image, pair.name, to_srgb=False), self.preprocess)
        if self._keeps_all:
            self._squares[sample] = square
        return square

    def _beside_another(self, image: UInt8[Tensor, "3 S S"], ref: SampleRef) -> UInt8[Tensor, "3 S S"]:
        if self.augmentation is None or not self.augmentation.neighbour:
            return image
        rng = sample_rng(self.seed, ref, Stream.NEIGHBOUR)
        if rng.uniform() >= self.augmentation.neighbour:
            return image
        other = int(rng.integers(len(self.source)))
        try:
            return with_neighbour(image, partial(self._square, other), rng)
        except BadSample:  # the other image is reported when it is read itself
            return image

    def _mixed(self, image: UInt8[Tensor, "3 S S"], ref: SampleRef) -> UInt8[Tensor, "3 S S"]:
        if self.augmentation is None or self._siblings is None:
            return image
        rng = sample_rng(self.seed, ref, Stream.MIX)
        sibling = self._siblings.draw(ref.sample, rng)
        if sibling is None:
            return image
        try:
            return mix_images(self.augmentation, image, partial(self._square, sibling), rng)
        except BadSample:  # the other image is reported when it is read itself
            return image


def collate(samples: Sequence[Sample]) -> Batch:
    """Make a batch of samples: pad to the longest caption, and find the tokens to predict."""
    token_ids, lengths = pad_rows([sample.token_ids for sample in samples])
    kept_patches = [sample.kept_patches for sample in samples if sample.kept_patches is not None]
    thing_ids = [sample.thing_id for sample in samples if sample.thing_id is not None]
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        token_ids=token_ids,
        lengths=lengths,
        next_tokens=find_next_tokens(token_ids, lengths),
        caption_ids=torch.tensor([sample.caption_id for sample in samples]),
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        keys=tuple(sample.key for sample in samples),
        replaced=tuple(sample.replaced for sample in samples if sample.replaced is not None),
        cut_captions=sum(sample.is_cut for sample in samples),
        kept_patches=torch.stack(kept_patches) if kept_patches else None,
        thing_ids=torch.tensor(thing_ids) if thing_ids else None,
    )


def find_next_tokens(token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Int[Tensor, " M"]:
    """The tokens that the captions of a batch predict, caption after caption. No other code shifts tokens.

    A row `[BOS] w₁ … wₙ [EOS] [CLS]` predicts `w₁ … wₙ [EOS]`.
    """
    shifted = token_ids[:, 1:-1]
    return shifted[torch.arange(shifted.shape[1]) < lengths[:, None] - 2]
