"""Baselines for a trained model, computed from its training pairs: a closed-form fit, and the nearest training image.

Shapes: N images of a split, M training images, F features, Z width of a vector.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from grr_coca.adapt.adapt_model import adaptation_of
from grr_coca.adapt.fit import fit_images
from grr_coca.adapt.read_pairs import read_pairs, require_size
from grr_coca.common.shapes import Float, Int
from grr_coca.data.sources.base import PairSource
from grr_coca.evaluate.caption_split import CaptionedSplit, pairs_by_image
from grr_coca.evaluate.split import Gallery
from grr_coca.evaluate.tasks import split_captions
from grr_coca.infer.adapted.descriptors import descriptors, unit
from grr_coca.infer.image_text_model import ImageTextModel

CLOSED_FORM, NEAREST = "closed form", "nearest image"
_BATCH = 64


class Baselines:
    """Two baselines that are computed from training pairs, without training: `CLOSED_FORM` and `NEAREST`.

    Args:
        training: The pairs.
        name: Name of the pairs in messages.
        base: Start model of the training, or another model that was not trained on the pairs.

    Raises:
        UserError: If there are too few or too many pairs, or the pairs cannot be used.
    """

    def __init__(self, training: PairSource, name: str, base: ImageTextModel) -> None:
        require_size(training, name)
        self._base = base
        self._images = read_pairs(training, name, base, {}, lambda *_: None)
        fitted = fit_images(self._images, lambda _: None)
        self._adaptation = adaptation_of(self._images, fitted, name, "")
        self._features = fitted.features

    def galleries(self, split: PairSource) -> dict[str, Gallery]:
        """Embed the images and captions of a split with each baseline, and return the results by baseline.

        In the baseline `NEAREST`, an image is represented by the words in the captions of the nearest training image.

        Raises:
            BadSample: If a pair of the split cannot be read.
        """
        found = self._embed_split(split)
        texts, owners, ids = split_captions(split, pairs_by_image(split))
        queries = self._adaptation.text_vectors(texts, self._base.embed_texts(texts, batch_size=_BATCH))
        numbers = self._adaptation.header.split[0]
        caption_means = self._images.captions.mean_of_images(self._adaptation.arrays.caption_vectors[:, :numbers])
        nearest = unit(caption_means[found.nearest])
        return {
            CLOSED_FORM: _gallery(found.vectors, queries, owners, ids),
            NEAREST: _gallery(nearest, unit(queries[:, :numbers]), owners, ids),
        }

    def captions(self, split: PairSource) -> dict[str, CaptionedSplit]:
        """Caption the images of a split with each baseline, and return the captions by baseline.

        `CLOSED_FORM` chooses the most similar training caption. `NEAREST` chooses the first caption of the nearest
        training image.

        Raises:
            BadSample: If a pair of the split cannot be read.
        """
        found, images = self._embed_split(split), pairs_by_image(split)
        texts, owners, _ = split_captions(split, images)
        references = [
            tuple(text for text, owner in zip(texts, owners, strict=True) if owner == i) for i in range(len(images))
        ]
        captions = self._images.captions
        best = (found.vectors @ self._adaptation.arrays.caption_vectors.T).argmax(axis=1)
        names = tuple(split.name(pairs[0]) for pairs in images)
        chosen = {CLOSED_FORM: best, NEAREST: captions.first_of_images[found.nearest]}
        return {
            name: CaptionedSplit(names, tuple(captions.texts[text_id] for text_id in text_ids), tuple(references))
            for name, text_ids in chosen.items()
        }

    def _embed_split(self, split: PairSource) -> "_SplitFeatures":
        model, images = self._base, pairs_by_image(split)
        rows: list[tuple[np.ndarray, np.ndarray]] = []

        def batches() -> Iterator[np.ndarray]:
            for start in range(0, len(images), _BATCH):
                files = [split[pairs[0]] for pairs in images[start : start + _BATCH]]
                yield np.stack([model.preprocess(model.preprocess.decode(file.image, file.name)) for file in files])

        def work(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return model.engine.encode_images(pixels).embedding, descriptors(pixels)

        model.map_batches(batches(), work, rows.append)
        embeddings, described = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        vectors, _ = self._adaptation.image_vectors(embeddings, described)
        return _SplitFeatures(vectors, self._adaptation.features(embeddings, described), self._features)


@dataclass(frozen=True)
class _SplitFeatures:
    """Closed-form vectors and features of the images of a split, and features of the training images."""

    vectors: Float[np.ndarray, "N Z"]
    features: Float[np.ndarray, "N F"]
    learned: Float[np.ndarray, "M F"]

    @cached_property
    def nearest(self) -> Int[np.ndarray, " N"]:
        """Index of the nearest training image, for each image of the split."""
        return (2 * self.features @ self.learned.T - np.square(self.learned).sum(axis=1)).argmax(axis=1)


def _gallery(images: np.ndarray, texts: np.ndarray, owners: list[int], ids: list[int]) -> Gallery:
    rows = [torch.from_numpy(np.ascontiguousarray(each, np.float32)) for each in (images, texts)]
    return Gallery(rows[0], rows[1], torch.tensor(owners), torch.tensor(ids))
