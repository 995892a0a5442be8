"""Turn pairs into samples, and samples into a batch: decoding, augmentation, tokenization, padding and labels.

Worker processes of a loader prepare batches in advance. A log counts the bad samples that are replaced during training.

Shapes: B samples, T positions, S image size in pixels, F image size of a frozen encoder, N tokens of width X that this
encoder returns, K kept patches.
"""

import logging
import os
import re
import signal
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import util
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from grr_coca.common.errors import UserError
from grr_coca.common.files import HandleCache
from grr_coca.data.augmentation import Augmentation, ImageChange
from grr_coca.data.batch import Batch, FeatureTokens, Replacement, normalize, pad_rows, to_uint8_pixels
from grr_coca.data.order import Blocks, SampleRef
from grr_coca.data.prefetch import PrefetchRefs, prefetch_blocks
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.random_changes import (
    MAX_REPLACEMENTS,
    Siblings,
    Stream,
    add_neighbour,
    change_images,
    mix_images,
    sample_rng,
)
from grr_coca.data.sources.base import BadSample, PairSource, RawPair, stable_id
from grr_coca.data.tokenizer import NUM_SPECIAL_TOKENS, Tokenizer, caption_id, clean_caption

_log = logging.getLogger(__name__)

_MAX_CACHED_PIXELS = 2**26
"""Maximum total number of pixels for which all decoded training images are cached. They take up to 192 MiB per worker.
"""

_RECENT_BLOCKS = 512
"""Number of most recent blocks that are not announced to the source again. This is the number of blocks in two windows
of the order."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A pair prepared for a batch. `token_ids` is a row from `Tokenizer.encode_row`.

    `image` is normalized. If `change` is given, it has not been applied yet, and `image` has values 0 … 255. A model
    without its own image encoder needs no pixels, so S = 0. `is_cut` specifies whether the caption is truncated to the
    context length. `replaced` is the bad sample in whose place this sample was read. `features` come from a frozen
    encoder. If they are missing, the encoder computes them from `encoder_pixels`. See `Batch` for the other fields.
    """

    key: str
    image: Float[Tensor, "3 S S"] | UInt8[Tensor, "3 S S"]
    token_ids: list[int]
    caption_id: int
    image_id: int
    concept_id: int | None = None
    is_cut: bool = False
    replaced: Replacement | None = None
    kept_patches: Int[Tensor, " K"] | None = None
    change: ImageChange | None = None
    features: Float[Tensor, "N X"] | None = None
    encoder_pixels: UInt8[Tensor, "F F 3"] | None = None


class _Pixels(NamedTuple):
    """Pixels of an image: for the model's own image encoder, and for a frozen encoder if its features are missing."""

    own: UInt8[Tensor, "3 S S"]
    frozen: UInt8[Tensor, "F F 3"] | None = None


class _Decoded(NamedTuple):
    """A pair without the bytes of its image, and the pixels of the image."""

    pair: RawPair
    pixels: _Pixels


_NO_PIXELS = _Pixels(torch.zeros(3, 0, 0, dtype=torch.uint8))


class FrozenInput(NamedTuple):
    """Preprocessing of a frozen encoder, and whether the model also has its own image encoder (`is_beside`).

    The model's own encoder then gets the square of the frozen encoder.
    """

    preprocess: Preprocess
    is_beside: bool


class PairDataset(Dataset[Sample]):
    """Samples of a source: its pairs after decoding, augmentation and tokenization.

    With an augmentation, the dataset is for training. The selected caption of an image, the change of the image, and
    the replacement for a bad sample depend only on the seed, the epoch and the index of the sample. They depend neither
    on the order in which samples are read nor on the number of workers. If the source is small enough, all its decoded
    images are cached in memory during training.

    Without an augmentation, the dataset is for evaluation. It yields the first caption and the unchanged image, and a
    bad sample is an error, because scores on a smaller split would not be comparable.

    Args:
        source: Source of the pairs.
        tokenizer: Tokenizer of the captions.
        preprocess: Preprocessing of the model's own image encoder.
        context_length: Maximum number of positions of a caption, including special tokens.
        augmentation: Random changes of training images. None means evaluation.
        seed: Seed of all random choices.
        keep_patches: Function that samples the patches to keep, for patch dropout. None keeps all patches.
        first_caption: In training, probability of choosing the first caption of an image outright. Otherwise, one of
            all its captions is chosen with equal probability.
        has_siblings: Whether samples get a `concept_id`, because images with the same first caption are siblings.
        blocks: Blocks of the order in which the source is read. The default is the blocks of `Shuffle` and
            `EvaluationOrder`.
        frozen: Frozen encoder of a model that takes features. None for other models.
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
        blocks: Blocks | None = None,
        frozen: "FrozenInput | None" = None,
    ) -> None:
        self.source = source
        self.frozen = frozen
        self._has_pixels = frozen is None or frozen.is_beside
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.context_length = context_length
        self.augmentation = augmentation
        self.seed = seed
        self.keep_patches = keep_patches
        self.first_caption = first_caption
        self.has_siblings = has_siblings
        self._siblings = Siblings(source) if augmentation is not None and augmentation.mixes else None
        self._caches_all = augmentation is not None and len(source) * self._max_pixels_per_image <= _MAX_CACHED_PIXELS
        self._cached: dict[int, _Decoded] = {}
        self._last: tuple[bytes, _Pixels] | None = None
        self._token_ids: dict[str, list[int]] = {}
        self._blocks = blocks or Blocks([len(source)])
        self._expected: HandleCache[range, None] = HandleCache(source.expect, None, _RECENT_BLOCKS)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, ref: SampleRef) -> Sample:
        """Read one sample. In training, a bad sample is replaced.

        Raises:
            BadSample: In evaluation, if the image is corrupt or the caption is missing; the message names the pair.
            UserError: In training, if no valid sample is found.
        """
        return self.__getitems__([ref])[0]

    def __getitems__(self, refs: Sequence[SampleRef]) -> list[Sample]:
        """Read the samples of a batch, and apply the changes to all images together.

        PyTorch's data loader calls this method. Errors are the same as in `__getitem__`.
        """
        if isinstance(refs, PrefetchRefs):
            prefetch_blocks(self.source, refs.blocks)
        decoded = self._decode([ref.sample for ref in refs], are_expected=True)
        samples = [self._valid_sample(ref, decoded) for ref in refs]
        changes = [sample.change for sample in samples if sample.change is not None]
        if not changes:
            return samples
        images = normalize(change_images(torch.stack([sample.image for sample in samples]), changes), self.preprocess)
        return [replace(sample, image=image, change=None) for sample, image in zip(samples, images, strict=True)]

    def _decode(self, samples: Sequence[int], *, are_expected: bool = False) -> "dict[int, _Decoded | UserError]":
        """Read pairs, and decode their images together in a subprocess. Return a result or an error for each sample.

        Workers of a loader do not decode images in their own process, because they could not be prevented from opening
        files, and because an image that crashes the decoder would end the run. `are_expected` specifies whether other
        samples of the same blocks will be read soon.
        """
        decoded: dict[int, _Decoded | UserError] = {}
        waiting: deque[list[tuple[int, RawPair]]] = deque()  # the samples of each image to decode, in order

        def contents() -> Iterator[tuple[bytes | UserError, str]]:
            for sample in dict.fromkeys(samples):
                if sample in self._cached:
                    decoded[sample] = self._cached[sample]
                    continue
                if are_expected:
                    self._expected[self._blocks.block_of(sample)]  # calls `source.expect`, once for each block
                try:
                    pair = self.source[sample]
                except BadSample as error:
                    decoded[sample] = error
                    continue
                # The captions of an image are consecutive, so the image is decoded only for the first one.
                if pair.features is not None and not self._has_pixels:
                    decoded[sample] = _Decoded(replace(pair, image=b""), _NO_PIXELS)
                elif waiting and pair.image == waiting[-1][0][1].image:
                    waiting[-1].append((sample, pair))
                elif self._last is not None and pair.image == self._last[0]:
                    decoded[sample] = _Decoded(replace(pair, image=b""), self._last[1])
                else:
                    waiting.append([(sample, pair)])
                    yield pair.image, pair.name

        # Features are computed from sRGB colours.
        preprocess = self.preprocess if self.frozen is None else self.frozen.preprocess
        for answer in preprocess.decode_squares(contents(), to_srgb=self.frozen is not None):
            samples_of_image = waiting.popleft()
            if isinstance(answer, UserError):
                decoded |= {sample: answer for sample, _ in samples_of_image}
                continue
            pixels = self._pixels_of(answer, samples_of_image[0][1])
            self._last = samples_of_image[0][1].image, pixels
            decoded |= {sample: _Decoded(replace(pair, image=b""), pixels) for sample, pair in samples_of_image}
        if self._caches_all:
            self._cached |= {sample: one for sample, one in decoded.items() if isinstance(one, _Decoded)}
        return decoded

    @property
    def _max_pixels_per_image(self) -> int:
        return max(self.preprocess.image_size, 0 if self.frozen is None else self.frozen.preprocess.image_size) ** 2

    def _pixels_of(self, square: Image.Image, pair: RawPair) -> _Pixels:
        """Return the pixels of a square, which is the input of the frozen encoder if there is one."""
        own = to_uint8_pixels(square, self.preprocess) if self._has_pixels else _NO_PIXELS.own
        if self.frozen is None or pair.features is not None:
            return _Pixels(own)
        return _Pixels(own, torch.from_numpy(self.frozen.preprocess(square)))

    def _valid_sample(self, ref: SampleRef, decoded: "dict[int, _Decoded | UserError]") -> Sample:
        try:
            return self._sample(ref, decoded[ref.sample])
        except BadSample as error:
            if self.augmentation is None:
                raise
            container = self.source.container(ref.sample)
            replaced = Replacement(error.cause, self.source.name(ref.sample), container, ref.epoch, ref.sample)
            return replace(self._replacement_sample(ref, error), replaced=replaced)

    def _replacement_sample(self, ref: SampleRef, first: BadSample) -> Sample:
        for attempt in range(MAX_REPLACEMENTS):
            rng = sample_rng(self.seed, ref, Stream.REPLACEMENT + attempt)
            try:
                other = int(rng.integers(len(self.source)))
                return self._sample(SampleRef(ref.epoch, other), self._decode([other])[other])
            except BadSample:
                continue
        raise UserError(
            f"{first}; {MAX_REPLACEMENTS} other samples are also bad; run `grr-coca data check` to list all errors"
        )

    def _sample(self, ref: SampleRef, decoded: "_Decoded | UserError") -> Sample:
        if isinstance(decoded, UserError):
            raise decoded
        pair = decoded.pair
        caption = clean_caption(self._choose_caption(pair.captions, ref), pair.name)
        token_ids = self._encode(caption)
        image, change = self._image_and_change(decoded.pixels.own, ref)
        return Sample(
            key=pair.key,
            image=image,
            change=change,
            token_ids=self.tokenizer.row(token_ids, self.context_length),
            caption_id=caption_id(caption),
            image_id=stable_id(pair.image_name or pair.name),
            concept_id=caption_id(clean_caption(pair.captions[0], pair.name)) if self.has_siblings else None,
            is_cut=len(token_ids) + NUM_SPECIAL_TOKENS > self.context_length,
            kept_patches=self.keep_patches and self.keep_patches(sample_rng(self.seed, ref, Stream.PATCHES)),
            features=None if pair.features is None else torch.from_numpy(np.array(pair.features)),
            encoder_pixels=decoded.pixels.frozen,
        )

    def _choose_caption(self, captions: tuple[str, ...], ref: SampleRef) -> str:
        if len(captions) == 1 or self.augmentation is None:
            return captions[0]
        rng = sample_rng(self.seed, ref, Stream.CAPTION)
        if self.first_caption and rng.uniform() < self.first_caption:
            return captions[0]
        return captions[rng.integers(len(captions))]

    def _encode(self, caption: str) -> list[int]:
        token_ids = self._token_ids.get(caption) or self.tokenizer.encode(caption)
        if self._caches_all:
            self._token_ids[caption] = token_ids
        return token_ids

    def _image_and_change(self, square: UInt8[Tensor, "3 S S"], ref: SampleRef) -> tuple[Tensor, ImageChange | None]:
        """Return the image of a sample, and the change that has not been applied to it yet."""
        if not self._has_pixels:
            return square.float(), None
        if self.augmentation is None:
            return normalize(square.float().div_(255), self.preprocess), None
        return self._combine_images(square, ref, self.augmentation), self.augmentation.draw(sample_rng(self.seed, ref))

    def _square(self, sample: int) -> UInt8[Tensor, "3 S S"]:
        decoded = self._decode([sample])[sample]
        if isinstance(decoded, UserError):
            raise decoded
        return decoded.pixels.own

    def _combine_images(
        self, image: UInt8[Tensor, "3 S S"], ref: SampleRef, augmentation: Augmentation
    ) -> UInt8[Tensor, "3 S S"]:
        """Mix a sibling into an image, and add a neighbour.

        If the other image is bad, it is ignored, and its error is reported when it is read as a sample.
        """
        if self._siblings is not None:
            rng = sample_rng(self.seed, ref, Stream.MIX)
            sibling = self._siblings.draw(ref.sample, rng)
            if sibling is not None:
                with suppress(BadSample):
                    image = mix_images(augmentation, image, partial(self._square, sibling), rng)
        if augmentation.neighbour:
            rng = sample_rng(self.seed, ref, Stream.NEIGHBOUR)
            if rng.uniform() < augmentation.neighbour:
                other = int(rng.integers(len(self.source)))
                with suppress(BadSample):
                    image = add_neighbour(image, partial(self._square, other), rng)
        return image


def collate(samples: Sequence[Sample]) -> Batch:
    """Create a batch from samples: pad to the longest caption, and find the tokens to predict."""
    token_ids, lengths = pad_rows([sample.token_ids for sample in samples])
    kept_patches = [sample.kept_patches for sample in samples if sample.kept_patches is not None]
    concept_ids = [sample.concept_id for sample in samples if sample.concept_id is not None]
    features = [sample.features for sample in samples if sample.features is not None]
    encoder_pixels = [sample.encoder_pixels for sample in samples if sample.encoder_pixels is not None]
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
        concept_ids=torch.tensor(concept_ids) if concept_ids else None,
        features=FeatureTokens.pad(features) if features else None,
        encoder_pixels=torch.stack(encoder_pixels) if encoder_pixels else None,
    )


def find_next_tokens(token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Int[Tensor, " M"]:
    """Return the tokens that the model must predict for a batch of captions, caption after caption.

    For a row `[BOS] w₁ … wₙ [EOS] [CLS]`, these are `w₁ … wₙ [EOS]`. No other code shifts tokens.
    """
    shifted = token_ids[:, 1:-1]
    return shifted[torch.arange(shifted.shape[1]) < lengths[:, None] - 2]


_PREFETCHED_BATCHES = 4
"""Number of batches that each worker prefetches. These batches suffice to bridge a slow read."""

_MAX_SOCKET_PATH = 103
"""Maximum number of bytes in the path of a socket on macOS. Linux allows four bytes more."""

_ERROR_PREFIX = re.compile(r"^grr_coca\.[\w.]+: ", re.MULTILINE)
"""Prefix of this package's error messages in the traceback of a worker."""


class _Loader(DataLoader[Batch]):
    """`DataLoader` that warns once about truncated captions, and raises errors of its workers without a traceback."""

    has_warned = False

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            for batch in super().__iter__():
                if batch.cut_captions and not self.has_warned:
                    self.has_warned = True
                    self._warn_of_cut_captions(batch)
                yield batch
        except UserError as error:
            # Without the traceback, nothing references the workers, so they end now. The frames of PyTorch reference
            # the error that they raise. The traceback would therefore exist until the next garbage collection, which
            # would wait five seconds for each worker.
            raise UserError(_ERROR_PREFIX.split(str(error).rstrip())[-1]) from error.with_traceback(None)

    def _warn_of_cut_captions(self, batch: Batch) -> None:
        context_length = self.dataset.context_length  # type: ignore[attr-defined]
        longest = batch.keys[int(batch.lengths.argmax())]
        _log.warning(
            "%d of %d captions, such as that of %s, are truncated to the context of %d tokens (not reported again)",
            batch.cut_captions,
            len(batch),
            longest,
            context_length - 3,
        )


def make_loader(
    dataset: PairDataset, order: Sequence[list[SampleRef]] | object, num_workers: int, *, warns: bool = True
) -> DataLoader[Batch]:
    """Create a loader of batches in a given order; see `grr_coca.data.order`.

    Workers ignore SIGINT, SIGUSR1 and, on Linux, a SIGTERM that the parent process did not send, so that the parent can
    finish and save.

    Args:
        dataset: The samples.
        order: Iterable of the references to the samples of each batch.
        num_workers: Number of worker processes. 0 loads batches in this process.
        warns: Whether to warn about the first truncated caption. False if it has already been reported.

    Raises:
        UserError: If the path of the folder for temporary files is too long for workers.
    """
    if num_workers:
        _require_room_for_sockets()
    loader = _Loader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=order,  # type: ignore[arg-type]
        collate_fn=collate,  # type: ignore[arg-type]
        num_workers=num_workers,
        prefetch_factor=_PREFETCHED_BATCHES if num_workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
    )
    loader.has_warned = not warns
    return loader


def _require_room_for_sockets() -> None:
    # Batches are sent through a socket in the folder for temporary files. If the path of the socket were too long,
    # training would wait forever.
    longest = f"{util.get_temp_dir()}/listener-12345678"
    if os.name == "posix" and len(os.fsencode(longest)) > _MAX_SOCKET_PATH:
        raise UserError(
            f"{tempfile.gettempdir()}: the path of this folder for temporary files is too long for processes that load "
            "data; set TMPDIR to a shorter one, or data.num_workers to 0"
        )


def _leave_signals_to_parent(worker: int) -> None:  # noqa: ARG001 (torch passes it)
    # Signals reach all processes of a group. If they ended the workers, a run that is saving would lose their batches.
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # missing on macOS and Windows, where any SIGTERM ends the workers
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_at_signal_of_parent, daemon=True).start()


def _end_at_signal_of_parent() -> None:
    # At exit, Python sends SIGTERM to the remaining workers, and waits for them.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class ReplacementLog:
    """Counter of replaced samples that stops a run if too many samples are bad.

    Args:
        max_share: Maximum fraction of bad samples.
        window: Number of most recent samples for which the fraction is computed. Corrupt data in the middle of a long
            run are thus noticed, while one bad batch at the start does not stop the run.
        counts: For a resumed run, the number of replaced samples so far, by cause.
    """

    def __init__(self, max_share: float, window: int = 10_000, counts: Mapping[str, int] | None = None) -> None:
        self.counts: Counter[str] = Counter(counts)
        self._max_share = max_share
        self._window = window
        self._recent: deque[tuple[int, tuple[str, ...]]] = deque()
        self._recent_samples = 0
        self._recent_containers: Counter[str] = Counter()

    @property
    def share(self) -> float:
        """Fraction of bad samples in the window."""
        return self._recent_containers.total() / max(self._recent_samples, 1)

    def add(self, num_samples: int, replaced: Sequence[Replacement]) -> None:
        """Count a batch of `num_samples` samples.

        Raises:
            UserError: If the window is full and its fraction of bad samples is too large. The message names the shard
                or folder that has most of the bad samples.
        """
        containers = tuple(replacement.container for replacement in replaced)
        self.counts.update(replacement.cause for replacement in replaced)
        self._recent.append((num_samples, containers))
        self._recent_samples += num_samples
        self._recent_containers.update(containers)
        while self._recent_samples - self._recent[0][0] >= self._window:
            num_old, old_containers = self._recent.popleft()
            self._recent_samples -= num_old
            self._recent_containers.subtract(old_containers)
        if self._recent_samples >= self._window and self.share > self._max_share:
            raise UserError(self._format_error())

    def _format_error(self) -> str:
        worst, count = self._recent_containers.most_common(1)[0]
        causes = ", ".join(f"{cause}: {number:,}" for cause, number in self.counts.most_common())
        return (
            f"{self.share:.0%} of the last {self._recent_samples:,} samples are bad, more than health: max_bad_share "
            f"{self._max_share:g}; most of them, {count:,}, are in {worst}; in the whole run: {causes}; "
            f"`grr-coca data check` lists them"
        )
