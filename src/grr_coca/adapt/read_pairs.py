"""Read a user's pairs: image features from the base model and from descriptors, and caption embeddings.

Shapes: N images, E embedding width, D width of a descriptor, P pairs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from grr_coca.adapt.targets import Captions
from grr_coca.common.errors import UserError
from grr_coca.common.shapes import Float, Int, UInt8
from grr_coca.data.sources.base import BadSample, PairSource
from grr_coca.data.sources.views import ByImage
from grr_coca.data.tokenizer import clean_caption
from grr_coca.infer.adapted.adaptation import file_digest
from grr_coca.infer.adapted.beside import MeanTokenDescriptor
from grr_coca.infer.adapted.descriptors import descriptors
from grr_coca.infer.image_text_model import ImageTextModel

MAX_PAIRS = 50_000
MIN_IMAGES = 10
_BATCH = 64

OnProgress = Callable[[int, int], object]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images and captions, as features of the base model and of descriptors.

    Attributes:
        features: Base embedding of each image, followed by its descriptors, N E+D. The descriptors from an additional
            image encoder come last. If that encoder replaces the base, these are the only descriptors, and the
            embeddings are zeros.
        digests: SHA-256 of each image file, N 32.
        captions: Captions of the images; captions of fitted images come first.
        pair_ids: Index of each image's first pair in its source.
        bad: Error messages for images whose pairs cannot be used.
        num_fit: Number of fitted images, which come first. The remaining images are held out for measurements.
    """

    features: Float[np.ndarray, "N F"]
    digests: UInt8[np.ndarray, "N 32"]
    captions: Captions
    pair_ids: tuple[int, ...]
    bad: tuple[str, ...]
    num_fit: int

    def __len__(self) -> int:
        return len(self.features)

    @property
    def embeddings(self) -> Float[np.ndarray, "N E"]:
        """Base embeddings of the images, or zeros if the base does not process them."""
        return self.features[:, : self.captions.embeddings.shape[1]]

    @property
    def is_seen_by_base(self) -> bool:
        """Whether the base has embedded the images, so that `embeddings` are not zeros."""
        return bool(self.embeddings.any())

    @property
    def described(self) -> Float[np.ndarray, "N D"]:
        """Descriptors of the images."""
        return self.features[:, self.captions.embeddings.shape[1] :]

    @property
    def fitted_captions(self) -> Captions:
        """Captions of the fitted images."""
        return self.captions.subset(np.arange(self.num_fit))

    def subset(self, rows: Int[np.ndarray, " n"]) -> "ImageSet":
        """Return the images at some ascending indices. All caption texts are kept, including unused ones."""
        return replace(
            self,
            features=self.features[rows],
            digests=self.digests[rows],
            captions=self.captions.subset(rows),
            pair_ids=tuple(self.pair_ids[row] for row in rows.tolist()),
            num_fit=int((rows < self.num_fit).sum()),
        )


@dataclass(frozen=True, kw_only=True)
class _ReadImage:
    pair_id: int
    is_held: bool
    digest: bytes
    row: np.ndarray | None
    pixels: np.ndarray | None
    captions: list[str]


def require_size(source: PairSource, path: str, advice: str = "") -> None:
    """Check the number of pairs before reading them.

    Args:
        source: The pairs.
        path: Name of the pairs in messages.
        advice: Advice to append to the message if there are too many pairs.

    Raises:
        UserError: If there are too many or too few pairs.
    """
    if len(source) > MAX_PAIRS:
        raise UserError(f"{path}: contains {len(source):,} pairs; adapt accepts at most {MAX_PAIRS:,}{advice}")
    if len(source) < MIN_IMAGES:
        raise UserError(f"{path}: too few pairs, {len(source)}; adapt needs at least {MIN_IMAGES} images with captions")


def read_pairs(
    source: PairSource,
    path: str,
    model: ImageTextModel,
    stored: Mapping[bytes, Float[np.ndarray, " F"]],
    on_progress: OnProgress,
    held_from: int | None = None,
    descriptor: MeanTokenDescriptor | None = None,
) -> ImageSet:
    """Read all pairs, and skip pairs that cannot be used. Equal image files become one image with all their captions.

    The order is that of the first pairs, except that images that are held out from the fit come last.

    Args:
        source: The pairs.
        path: Name of the pairs in messages.
        model: The base model.
        stored: Features of images that were read earlier, by file digest.
        on_progress: Called with the number of images read so far and the total number of images.
        held_from: Index of the first pair whose image is held out from the fit. If None, all images are fitted.
        descriptor: An additional image encoder, which takes the same pixels as the model. If its domain mean is
            unknown, the mean is computed from the fitted images, and assigned to the descriptor.

    Raises:
        UserError: If too few images can be fitted, or all their captions or all these images are equal.
    """
    by_image = ByImage(source)
    bad: list[str] = []
    rows: dict[bytes, np.ndarray] = {}
    captions: dict[bytes, dict[str, None]] = {}
    first_pairs: dict[bytes, int] = {}
    held: set[bytes] = set()
    first_held = len(source) if held_from is None else held_from

    def batches() -> Iterator[list[list[int]]]:
        for start in range(0, len(by_image), _BATCH):
            yield [by_image[image] for image in range(start, min(start + _BATCH, len(by_image)))]

    def work(batch: list[list[int]]) -> list[_ReadImage | str]:
        found = [_read_image(source, pairs, model, stored, first_held) for pairs in batch]
        fresh = [one for one in found if isinstance(one, _ReadImage) and one.pixels is not None]
        if not fresh:
            return found
        pixels = np.stack([one.pixels for one in fresh if one.pixels is not None])
        parts = [model.engine.encode_images(pixels).embedding]
        if descriptor is None or not descriptor.is_in_place:
            parts.append(descriptors(pixels))
        if descriptor is not None:
            seen = descriptor.mean_tokens(pixels, [one.digest for one in fresh])
            parts.append(seen if descriptor.mean is None else descriptor.scale(seen))
        computed = np.concatenate(parts, axis=1)
        by_index = dict(zip((one.pair_id for one in fresh), computed, strict=True))
        return [
            replace(one, row=by_index.get(one.pair_id, one.row), pixels=None) if isinstance(one, _ReadImage) else one
            for one in found
        ]

    done = 0

    def take(batch: list[_ReadImage | str]) -> None:
        nonlocal done
        for one in batch:
            if isinstance(one, str):
                bad.append(one)
                continue
            assert one.row is not None
            rows.setdefault(one.digest, np.asarray(one.row, np.float32))
            first_pairs.setdefault(one.digest, one.pair_id)
            captions.setdefault(one.digest, {}).update(dict.fromkeys(one.captions))
            if one.is_held:
                held.add(one.digest)
        done += len(batch)
        on_progress(done, len(by_image))

    model.map_batches(batches(), work, take)
    order = sorted(rows, key=held.__contains__)  # fitted images come first
    num_fit = len(order) - len(held)
    features = np.array([rows[digest] for digest in order], np.float32)
    if descriptor is not None and descriptor.mean is None and num_fit:
        seen = features[:, -descriptor.encoder.info.embed_dim :]
        descriptor.mean = seen[:num_fit].mean(axis=0)
        seen[:] = descriptor.scale(seen)
    _require_distinct_pairs(features[:num_fit], [captions[digest] for digest in order[:num_fit]], bad, path)
    texts = list(dict.fromkeys(text for digest in order for text in captions[digest]))
    numbers = {text: number for number, text in enumerate(texts)}
    pairs = [(image, numbers[text]) for image, digest in enumerate(order) for text in captions[digest]]
    owners, of_caption = np.array(pairs, np.int64).T
    return ImageSet(
        features=features,
        digests=np.frombuffer(b"".join(order), np.uint8).reshape(-1, 32),
        captions=Captions(tuple(texts), model.embed_texts(texts, batch_size=256), owners, of_caption),
        pair_ids=tuple(first_pairs[digest] for digest in order),
        bad=tuple(bad),
        num_fit=num_fit,
    )


def read_pixels(source: PairSource, pair_id: int, model: ImageTextModel) -> UInt8[np.ndarray, "S S 3"]:
    """Return the pixels of a pair's image in the form that the model takes, as a square of S × S pixels.

    Raises:
        BadSample: If the pair cannot be read.
    """
    pair = source[pair_id]
    return np.array(model.preprocess.decode_square(pair.image, pair.name))


def _read_image(
    source: PairSource,
    pairs: list[int],
    model: ImageTextModel,
    stored: Mapping[bytes, Float[np.ndarray, " F"]],
    first_held: int,
) -> "_ReadImage | str":
    """Read the pairs that belong to one image. If they cannot be used, return the error message.

    The image is decoded only if its features are not stored.
    """
    try:
        pair = source[pairs[0]]
        texts = [clean_caption(text, source.name(number)) for number in pairs for text in source.captions(number)]
        digest = file_digest(pair.image)
        row = stored.get(digest)
        pixels = np.array(model.preprocess.decode_square(pair.image, pair.name)) if row is None else None
    except BadSample as error:
        return str(error)
    return _ReadImage(
        pair_id=pairs[0],
        is_held=pairs[-1] >= first_held,
        digest=digest,
        row=row,
        pixels=pixels,
        captions=texts,
    )


def _require_distinct_pairs(
    features: Float[np.ndarray, "N *F"], captions: Sequence[Mapping[str, None]], bad: list[str], path: str
) -> None:
    """Check that there are enough images, and that neither all captions nor all images are equal.

    Raises:
        UserError: If a check fails.
    """
    cause = f" (pairs that cannot be read: {len(bad):,}; the first error is: {bad[0]})" if bad else ""
    if len(features) < MIN_IMAGES:
        raise UserError(
            f"{path}: too few different images, {len(features)}{cause}; adapt needs at least {MIN_IMAGES} images "
            "with captions"
        )
    if len({text for own in captions for text in own}) < 2:
        raise UserError(f"{path}: all captions are equal, so there is nothing to learn; use captions that differ")
    if not np.ptp(features, axis=0).any():
        raise UserError(f"{path}: all images look the same to the model; use images that differ")
