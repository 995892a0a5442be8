"""Embed a split with an `ImageTextModel`, such as an adapted model, without computing losses.

Shapes: N images, E embedding width.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from grr_coca.common.errors import UserError
from grr_coca.data.sources.base import PairSource
from grr_coca.data.tokenizer import caption_id, clean_caption
from grr_coca.evaluate.caption_split import images_of
from grr_coca.evaluate.retrieval import Gallery
from grr_coca.infer.image_text_model import ImageTextModel


def embedded_gallery(model: ImageTextModel, source: PairSource, batch_size: int) -> Gallery:
    """Embed each image and each caption of a split, and return them as a gallery for retrieval.

    Args:
        model: The model.
        source: The split.
        batch_size: Number of images or captions per batch.

    Raises:
        UserError: If a pair is invalid.
    """
    images = images_of(source)
    files = (source[pairs[0]] for pairs in images)
    texts, owners, ids = split_captions(source, images)
    return Gallery(
        embedded_images(model, ((file.image, file.name) for file in files), batch_size),
        torch.from_numpy(model.embed_texts(texts, batch_size=batch_size)),
        torch.tensor(owners),
        torch.tensor(ids),
    )


def split_captions(source: PairSource, images: Sequence[Sequence[int]]) -> tuple[list[str], list[int], list[int]]:
    """Return all captions of the given images, the index of each caption's image, and ids that equal captions share.

    Args:
        source: The split.
        images: Indices of the pairs of each image, from `images_of`.

    Raises:
        UserError: If a caption is empty.
    """
    texts, owners = [], []
    for image, pairs in enumerate(images):
        own = [clean_caption(text, source.name(place)) for place in pairs for text in source.captions(place)]
        texts += own
        owners += [image] * len(own)
    return texts, owners, [caption_id(text) for text in texts]


def _sound(square: Image.Image | UserError) -> Image.Image:
    if isinstance(square, UserError):
        raise square
    return square


def embedded_images(model: ImageTextModel, files: Iterable[tuple[bytes, str]], batch_size: int) -> Float[Tensor, "N E"]:
    """Embed image files, each given as its content and name.

    Raises:
        UserError: If an image cannot be decoded.
    """
    parts: list[np.ndarray] = []

    def decoded() -> Iterator[list[np.ndarray]]:
        rest = iter(files)
        while batch := list(islice(rest, batch_size)):
            yield [np.asarray(square) for square in map(_sound, model.preprocess.decode_squares(batch))]

    model.map_batches(decoded(), lambda pixels: model.engine.encode_images(np.stack(pixels)).embedding, parts.append)
    return torch.from_numpy(np.concatenate(parts))
