"""Caption the images of a split, and score the captions."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.files import resolve_link, write_bytes_atomic
from grr_coca.data.sources.base import PairSource, RawPair
from grr_coca.data.tokenizer import clean_caption
from grr_coca.evaluate.caption_metrics import CaptionScores, score_captions
from grr_coca.infer.engine.frozen import FrozenEngine
from grr_coca.infer.generate import GeneratedCaptions, generate, warn_if_repeated
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class CaptionedSplit:
    """Images of a split, each with its name, the model's caption (hypothesis) and its reference captions.

    Each image occurs once, and is named after its first pair.
    """

    names: tuple[str, ...]
    hypotheses: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]

    def scores(self) -> CaptionScores:
        """Score the captions against the references with all caption metrics; see `score_captions`."""
        return score_captions(self.hypotheses, self.references)


def caption_split(
    checkpoint: Checkpoint | ImageTextModel, source: PairSource, batch_size: int = 64, max_images: int | None = None
) -> CaptionedSplit:
    """Caption every image of a split once, by greedy decoding, in the order of the images' first pairs.

    An adapted model chooses its captions instead of decoding them. A warning is logged if many captions are equal.

    Args:
        checkpoint: The model.
        source: The split. Pairs of the same image become one image with several references.
        batch_size: Number of images per batch.
        max_images: Maximum number of images to caption, evenly spread over the split. None means all images.

    Raises:
        UserError: If the split is empty, a pair is invalid, or `batch_size` or `max_images` is below 1.
    """
    for name, value in {"batch_size": batch_size, "max_images": max_images}.items():
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    images = pairs_by_image(source)
    if not images:
        raise UserError("the split is empty: no image to caption; add images")
    if max_images is not None and max_images < len(images):
        images = [images[index * len(images) // max_images] for index in range(max_images)]
    model = ImageTextModel(checkpoint) if isinstance(checkpoint, Checkpoint) else checkpoint
    hypotheses: list[str] = []
    for start in range(0, len(images), batch_size):
        files = [source[pairs[0]] for pairs in images[start : start + batch_size]]
        hypotheses += [best.text for best, *_ in _generate(model, files).captions]
    warn_if_repeated(hypotheses)
    return CaptionedSplit(
        names=tuple(source.name(pairs[0]) for pairs in images),
        hypotheses=tuple(hypotheses),
        references=tuple(tuple(_references(source, pairs)) for pairs in images),
    )


def _generate(model: ImageTextModel, files: Sequence[RawPair]) -> GeneratedCaptions:
    """Caption images. A model that takes features uses the stored features if all of the images have them."""
    stored, engine = [file.features for file in files if file.features is not None], model.engine
    is_stored = isinstance(engine, FrozenEngine) and len(stored) == len(files)
    if isinstance(engine, FrozenEngine) and is_stored and engine.own is None:
        pixels = np.zeros((len(files), 1, 1, 3), np.uint8)
    else:
        pixels = np.stack([np.array(model.preprocess.decode_square(file.image, file.name)) for file in files])
    if isinstance(engine, FrozenEngine) and is_stored:
        return generate(engine.with_stored(stored), model.tokenizer, pixels)
    return model.generate(pixels)


def pairs_by_image(source: PairSource) -> list[list[int]]:
    """Return the indices of the pairs of each image, in the order of the images' first pairs.

    Pairs belong to the same image if their image names are equal.
    """
    images: dict[str, list[int]] = {}
    for index in range(len(source)):
        images.setdefault(source.image_name(index), []).append(index)
    return list(images.values())


def write_captions(captioned: CaptionedSplit, path: Path) -> None:
    """Write the captions to a file of JSON lines, with the keys `image`, `caption` and `references`.

    The file is written atomically. If `path` is a symbolic link, its target is written.

    Raises:
        UserError: If the file cannot be written.
    """
    rows = zip(captioned.names, captioned.hypotheses, captioned.references, strict=True)
    lines = [
        json.dumps({"image": name, "caption": caption, "references": references}, ensure_ascii=False) + "\n"
        for name, caption, references in rows
    ]
    try:
        # A name that is not UTF-8 contains lone surrogates, which are written as JSON escapes.
        write_bytes_atomic(resolve_link(path), "".join(lines).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(f"{path}: the captions cannot be written ({error.strerror or error})") from error


def _references(source: PairSource, pairs: Sequence[int]) -> Iterator[str]:
    for index in pairs:
        for caption in source.captions(index):
            yield clean_caption(caption, source.name(index))
