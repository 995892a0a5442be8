"""One object for all uses of a trained model: captions, embeddings, similarities and labels.

Shapes: N images, M texts, E joint embedding width, S image size, B images of a batch.
"""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from grr_coca.checkpoint import Checkpoint, from_pretrained
from grr_coca.data.text import clean_query
from grr_coca.engine.torch import TorchEngine
from grr_coca.errors import UserError, nearest
from grr_coca.evaluate.class_names import NAME_ALONE
from grr_coca.evaluate.zeroshot import ZeroShotClassifier, make_classifier
from grr_coca.generate import GREEDY, Caption, GenerationOptions, generate, warn_if_repeated
from grr_coca.inference.batches import Batches, OnProgress
from grr_coca.inference.images import ImageInput, ImagesInput, as_list, to_rgb
from grr_coca.inference.locate import locate_checkpoint

log = logging.getLogger(__name__)

_BATCH_SIZE = 32

_Numbered = Sequence[tuple[int, ImageInput]]
"""Images with their number in the call, from 1, which names an image without a path in messages."""


@dataclass(frozen=True)
class Description:
    """Captions (best first) and the unit-length embedding of an image, from one forward pass."""

    captions: list[Caption]
    embedding: Float[Tensor, " E"]


class LabelProbability(NamedTuple):
    """A label and its probability. The probabilities of all labels of an image sum to 1."""

    label: str
    probability: float


def load(name: str | Path, device: str | torch.device | None = None) -> "ImageTextModel":
    """Load a checkpoint for use.

    Args:
        name: a checkpoint or run folder, the name of a shipped model such as `icons`, or `owner/name` on the
            Hugging Face hub.
        device: where to run; None: CUDA, else Apple's MPS, else the CPU.

    Raises:
        UserError: there is no such checkpoint, a file is missing or damaged, or there is no such device.
    """
    return ImageTextModel(from_pretrained(locate_checkpoint(name), choose_device(device)))


class ImageTextModel:
    """Captions, embeds, classifies and compares images and texts.

    Images are paths, Pillow images, arrays (H W or H W C) or tensors (C H W), of any size; see
    `grr_coca.inference.images`. One image or text gives one result, a list gives a list. Batches have `batch_size`
    items, or fewer if these do not fit into memory. If an image cannot be read, every method raises a `UserError` that
    names it.

    On a CPU, a faster copy of the model does the work. After changes of the weights of `checkpoint.model`, call
    `refresh`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._batches = Batches()
        self._has_warned = False
        self.engine = TorchEngine(checkpoint.model, checkpoint.preprocess)

    def refresh(self) -> None:
        """Use the current weights of `checkpoint.model`. Until this is called, results mix old and new weights."""
        self.engine.refresh()

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.checkpoint.model.device

    def caption(
        self,
        images: ImagesInput,
        prompt: str = "",
        *,
        options: GenerationOptions = GREEDY,
        batch_size: int = _BATCH_SIZE,
        on_progress: OnProgress | None = None,
        **changes: object,
    ) -> str | list[str] | list[list[str]]:
        """Caption images: one string for each image, or a list of strings if `num_captions` is above 1.

        Args:
            images: one or many.
            prompt: text that every caption begins with.
            options: how to decode.
            batch_size: maximum number of images per batch.
            on_progress: called with the number of images done and the number of all images.
            **changes: fields of `GenerationOptions` by name, such as `num_beams=4`.

        Raises:
            UserError: an option does not exist, or options contradict each other.
        """
        many, is_single = as_list(images)
        options = _with_changes(options, changes)
        described = self.describe_many(many, prompt, options, batch_size, on_progress)
        warn_if_repeated([description.captions[0].text for description in described])
        captions = [[caption.text for caption in description.captions] for description in described]
        if options.num_captions > 1:
            return captions[0] if is_single else captions
        return captions[0][0] if is_single else [caption for (caption,) in captions]

    def describe(
        self,
        images: ImagesInput,
        prompt: str = "",
        *,
        options: GenerationOptions = GREEDY,
        batch_size: int = _BATCH_SIZE,
        on_progress: OnProgress | None = None,
        **changes: object,
    ) -> Description | list[Description]:
        """Describe images: captions with tokens and log-probabilities, and the embedding, from one forward pass.

        The arguments are those of `caption`.
        """
        many, is_single = as_list(images)
        options = _with_changes(options, changes)
        described = self.describe_many(many, prompt, options, batch_size, on_progress)
        return described[0] if is_single else described

    def describe_many(
        self,
        images: Sequence[ImageInput],
        prompt: str = "",
        options: GenerationOptions = GREEDY,
        batch_size: int = _BATCH_SIZE,
        on_progress: OnProgress | None = None,
        keys: Sequence[object] | None = None,
    ) -> list[Description]:
        """Describe a list of images. Returns a list with one description for each image.

        Args:
            images: any number of images.
            prompt: text that every caption begins with.
            options: how to decode.
            batch_size: maximum number of images per batch.
            on_progress: called with the number of images done and the number of all images.
            keys: a name for each image, which seeds its random numbers, so that sampled captions do not depend on the
                other images of the call; None: its number in the call.
        """

        def work(batch: _Numbered) -> list[Description]:
            names = [number if keys is None else keys[number - 1] for number, _ in batch]
            generated = generate(self.engine, self.checkpoint.tokenizer, self._pixels(batch), options, prompt, names)
            generated.require_numbers()
            # Copied, so that a row that is kept or sent to another process does not take its batch along.
            rows = [torch.from_numpy(row.copy()) for row in generated.image_embedding]
            return [Description(*row) for row in zip(generated.captions, rows, strict=True)]

        return self._batches.run("captioning", _numbered(images), batch_size, work, on_progress)

    def warn_if_unfit(self) -> None:
        """Warn once if the checkpoint says that its embeddings are unfit for search and labels."""
        if self.checkpoint.caution and not self._has_warned:
            self._has_warned = True
            log.warning("%s", self.checkpoint.caution)

    def embed_images(
        self, images: ImagesInput, *, batch_size: int = _BATCH_SIZE, on_progress: OnProgress | None = None
    ) -> Float[Tensor, "*N E"]:
        """Embed images: vectors of unit length on the CPU. Shape N E, or E for a single image."""
        self.warn_if_unfit()
        many, is_single = as_list(images)
        rows = self._batches.run("embedding images", _numbered(many), batch_size, self._image_rows, on_progress)
        return self._stack(rows)[0] if is_single else self._stack(rows)

    def embed_texts(
        self, texts: str | Iterable[str], *, batch_size: int = _BATCH_SIZE, on_progress: OnProgress | None = None
    ) -> Float[Tensor, "*M E"]:
        """Embed texts: vectors of unit length on the CPU. Shape M E, or E for a single text.

        Raises:
            UserError: a text is empty.
        """
        self.warn_if_unfit()
        is_single = isinstance(texts, str)
        many = [texts] if isinstance(texts, str) else list(texts)
        cleaned = [clean_query(text, f"text {number}") for number, text in enumerate(many, 1)]
        rows = self._batches.run("embedding texts", cleaned, batch_size, self._text_rows, on_progress)
        return self._stack(rows)[0] if is_single else self._stack(rows)

    def similarity(
        self, images: ImagesInput, texts: str | Iterable[str], *, batch_size: int = _BATCH_SIZE
    ) -> Float[Tensor, "N M"]:
        """The cosine similarity of every image and every text. The shape is N M, also for a single image or text."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        image_rows = self.embed_images(as_list(images)[0], batch_size=batch_size)
        return image_rows @ self.embed_texts(texts, batch_size=batch_size).T

    def classify(
        self,
        images: ImagesInput,
        labels: Sequence[str],
        *,
        templates: Sequence[str] = NAME_ALONE,
        batch_size: int = _BATCH_SIZE,
        on_progress: OnProgress | None = None,
    ) -> list[LabelProbability] | list[list[LabelProbability]]:
        """Classify images with any labels (zero-shot): each label with its probability, the likeliest first.

        The embedding of a label is the mean over templates (CLIP, arXiv 2103.00020, section 3.1.4). The probabilities
        are the softmax of the cosines times the model's inverse temperature.

        Args:
            images: one or many.
            labels: two or more different labels.
            templates: texts in which `{}` stands for the label, such as "a drawing of a {}".
            batch_size: maximum number of images per batch.
            on_progress: called with the number of images done and the number of all images.

        Raises:
            UserError: labels are repeated or too few, or a template has no `{}`.
        """
        many, is_single = as_list(images)
        classifier = self.classifier(labels, templates)
        ranked = self.rank_labels(classifier, self.embed_images(many, batch_size=batch_size, on_progress=on_progress))
        return ranked[0] if is_single else ranked

    def classifier(self, labels: Sequence[str], templates: Sequence[str] = NAME_ALONE) -> ZeroShotClassifier:
        """The zero-shot classifier for these labels, for repeated calls of `rank_labels`.

        Raises:
            UserError: labels are repeated or too few, or a template has no `{}`.
        """
        return make_classifier(self.embed_texts, labels, templates)

    def rank_labels(
        self, classifier: ZeroShotClassifier, embeddings: Float[Tensor, "N E"]
    ) -> list[list[LabelProbability]]:
        """All labels with their probabilities for each embedded image, the likeliest first."""
        scale = torch.tensor(self.engine.logit_scale)
        shares, order = classifier.probabilities(embeddings, scale).sort(dim=-1, descending=True, stable=True)
        names = classifier.class_names
        return [
            [LabelProbability(names[index], share) for index, share in zip(*row, strict=True)]
            for row in zip(order.tolist(), shares.tolist(), strict=True)
        ]

    def _image_rows(self, images: _Numbered) -> list[Tensor]:
        return list(torch.from_numpy(self.engine.encode_images(self._pixels(images)).embedding))

    def _text_rows(self, texts: Sequence[str]) -> list[Tensor]:
        token_ids, lengths = (tensor.cpu().numpy() for tensor in self.checkpoint.tokenize(texts))
        return list(torch.from_numpy(self.engine.encode_texts(token_ids, lengths)))

    def _pixels(self, images: _Numbered) -> UInt8[np.ndarray, "B S S 3"]:
        each = {id(image): (number, image) for number, image in images}  # once: Pillow is not thread-safe
        with ThreadPoolExecutor() as pool:  # decoding and resizing release the interpreter's lock
            rows = dict(zip(each, pool.map(self._preprocess, each.values()), strict=True))
        return np.stack([rows[id(image)] for _, image in images])

    def _preprocess(self, numbered: tuple[int, ImageInput]) -> UInt8[np.ndarray, "S S 3"]:
        number, image = numbered
        preprocess = self.checkpoint.preprocess
        return preprocess(to_rgb(image, f"image {number}", preprocess.opening))

    def _stack(self, rows: list[Tensor]) -> Float[Tensor, "N E"]:
        """Stack rows to a tensor of their own."""
        return torch.stack(rows) if rows else torch.empty(0, self.checkpoint.config.embed_dim)


def _numbered(images: Sequence[ImageInput]) -> _Numbered:
    return list(enumerate(images, 1))


def choose_device(device: str | torch.device | None) -> torch.device:
    """The named device. None: CUDA if available, else Apple's MPS, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    if device is None:
        return torch.device(_best())
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # fails for "meta", which holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"device '{device}' cannot be used here; the best available one is '{_best()}'") from error
    return chosen


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _with_changes(options: GenerationOptions, changes: dict[str, object]) -> GenerationOptions:
    """A copy of the options with some fields changed.

    Raises:
        UserError: a field does not exist; the message names the nearest.
    """
    names = [field.name for field in fields(options)]
    for name in changes:
        if name not in names:
            raise UserError(f"captioning has no option '{name}'; {nearest(name, names)}")
    return replace(options, **changes)  # type: ignore[arg-type]
