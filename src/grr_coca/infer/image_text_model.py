"""One object for all uses of a trained model: captions, embeddings, similarities and labels.

Shapes: N images, M texts, E joint embedding width, S image size in pixels, B images in a batch.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import compress, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError, escape_control_chars, suggest_name
from grr_coca.common.files import read_file_bytes
from grr_coca.common.shapes import Float, UInt8
from grr_coca.common.threads import Batches, OnProgress, in_worker, thread_pool
from grr_coca.data.image_forms import ImageInput, ImagesInput, to_rgb
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.tokenizer import Tokenizer, clean_query
from grr_coca.infer.calibration import UNKNOWN, Calibration, CaptionConfidence, read_calibration
from grr_coca.infer.class_names import BARE_NAME
from grr_coca.infer.classifier import ZeroShotClassifier, make_classifier
from grr_coca.infer.engine.base import Engine
from grr_coca.infer.generate import (
    GREEDY,
    Caption,
    GeneratedCaptions,
    GenerationOptions,
    generate,
    stream_captions,
    warn_if_repeated,
)
from grr_coca.infer.generate.captions import require_no_nan
from grr_coca.infer.tags import MAX_TAGS, Tag, Tagger, read_tag_model, read_tag_vectors, with_beams
from grr_coca.model.checkpoint_files import FOR_PHOTOGRAPHS, TAGS, CheckpointFiles, fingerprint
from grr_coca.model.config import CoCaConfig

if TYPE_CHECKING:
    from grr_coca.infer.engine.torch import TorchEngine
    from grr_coca.model.checkpoint import Checkpoint

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
Done = TypeVar("Done")
_BATCH_SIZE = 32

_Numbered = Sequence[tuple[int, ImageInput]]
"""Images and their numbers in the call, counted from 1. Messages identify an image without a path by its number."""


@dataclass(frozen=True)
class Description:
    """Captions of an image, best first, and the unit-length embedding of the image, both from one forward pass.

    Attributes:
        caption_confidences: Confidence of each caption; see `grr_coca.infer.calibration`.
        engine: Name of the engine, `onnx` or `torch`.
        tags: Words for the image, most likely first. Empty if no words were requested.
    """

    captions: list[Caption]
    embedding: Float[np.ndarray, " E"]
    caption_confidences: tuple[CaptionConfidence, ...] = ()
    engine: str = ""
    tags: tuple[Tag, ...] = ()

    @property
    def confidence(self) -> float | None:
        """Probability that the first caption is exactly right. None if unknown."""
        return self.caption_confidences[0].confidence if self.caption_confidences else None

    @property
    def unfamiliar(self) -> bool | None:
        """Whether the image is unlike the training images. None if unknown."""
        return self.caption_confidences[0].unfamiliar if self.caption_confidences else None


class LabelProbability(NamedTuple):
    """A label and its probability. The probabilities of all labels of an image sum to 1."""

    label: str
    probability: float


class ImageTextModel:
    """Model that captions, embeds, classifies and compares images and texts.

    Images are paths, Pillow images, arrays (H W or H W C) or PyTorch tensors (C H W), of any size; see
    `grr_coca.data.images`. One image or text yields one result, and a list yields a list. Embeddings and similarities
    are NumPy arrays. A batch has `batch_size` items, or fewer if memory is insufficient; a small model processes
    several batches at the same time, one per core. If an image cannot be read, every method raises a `UserError` that
    names the image.

    `engine` runs the model, and `engine.name` is `onnx` or `torch`. With PyTorch, `checkpoint` contains the model; call
    `refresh` after changing the weights.
    """

    def __init__(self, checkpoint: CheckpointFiles, engine: Engine | None = None, folder: Path | None = None) -> None:
        """Create a usable model from its parts.

        Args:
            checkpoint: A `grr_coca.model.checkpoint.Checkpoint` or, for engines other than PyTorch, its files without
                the weights.
            engine: Engine that runs the model. By default, PyTorch runs the checkpoint's model, preceded by the frozen
                encoder if the model takes features.
            folder: Folder from which the model was loaded.
        """
        if engine is None:
            from grr_coca.infer.engine.torch import TorchEngine

            engine = TorchEngine(cast("Checkpoint", checkpoint).model, checkpoint.preprocess)
            if checkpoint.encoder is not None:
                # lazy import, because few models take features
                from grr_coca.infer.engine.frozen import with_frozen_encoder

                checkpoint, engine = with_frozen_encoder(checkpoint, engine)
        self.engine = engine
        self.folder = folder
        self._files = checkpoint
        self._batches = Batches(engine)
        self._has_warned = False
        self._has_stored_weights = True

    @property
    def checkpoint(self) -> "Checkpoint":
        """Checkpoint that contains the PyTorch model.

        Raises:
            UserError: If the model runs in another engine.
        """
        if self.engine.name != "torch":
            raise UserError(
                "this model was loaded in ONNX Runtime, so it has no PyTorch model; load its checkpoint with "
                "engine='torch' (for an int8 model, the checkpoint from which it was exported)"
            )
        return cast("Checkpoint", self._files)

    def refresh(self) -> None:
        """Use the current weights of `checkpoint.model`. Until this method is called, results mix old and new weights.

        Afterwards, the model reports no confidences and does not detect unfamiliar images, because its calibration was
        fitted to the old weights.

        Raises:
            UserError: If the model runs in another engine.
        """
        assert self.checkpoint
        cast("TorchEngine", self.engine).refresh()
        self.calibration = None  # the calibration was fitted to the old weights
        self._has_stored_weights = False
        self.__dict__.pop("tagger", None)

    @property
    def device(self) -> str:
        """Device on which the model runs, such as `cpu` or `cuda:0`."""
        return str(cast("TorchEngine", self.engine).device) if self.engine.name == "torch" else "cpu"

    @property
    def config(self) -> CoCaConfig:
        """Architecture of the model."""
        return self._files.config

    @property
    def preset(self) -> str:
        """Name of the preset that defines the architecture."""
        return self._files.preset

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer for encoding texts and decoding captions."""
        return self._files.tokenizer

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing that decodes, crops and resizes images."""
        return self._files.preprocess

    @property
    def caution(self) -> str:
        """Reason why embeddings may be unsuitable for search and zero-shot classification. Empty if none is known."""
        return self._files.caution

    @property
    def can_decode(self) -> bool:
        """Whether a decoder can generate captions. If False, captions are chosen from known captions."""
        return True

    @cached_property
    def fingerprint(self) -> str:
        """Hash that identifies the model's files. Models with different fingerprints compute different embeddings.

        Raises:
            UserError: If the model was not loaded from a folder.
        """
        if self.folder is None:
            raise UserError(
                "a model that was not loaded from a folder has no fingerprint; save the model, and load "
                "it from its folder"
            )
        return fingerprint(self.folder)

    def open_ahead(self) -> None:
        """Open the graphs for captioning in background threads, while this thread reads images.

        With PyTorch, which has no graphs, this does nothing.
        """
        from grr_coca.infer.engine.onnx import OnnxEngine  # lazy import, because PyTorch does not need it

        if isinstance(self.engine, OnnxEngine):
            self.engine.open_ahead("image", "step")

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
        """Return captions of images: one string per image, or a list of strings if `num_captions` is above 1.

        Args:
            images: One or more images.
            prompt: Text that begins every caption.
            options: Decoding options.
            batch_size: Maximum number of images per batch.
            on_progress: Called with the number of finished images and the total number of images.
            **changes: Decoding options to change, as fields of `GenerationOptions`, such as `num_beams=4`.

        Raises:
            UserError: If an image cannot be read, an option does not exist or is out of range, options contradict each
                other, the prompt is too long, or the model computes NaN.
        """
        many, is_single = as_list(images)
        options = _with_changes(options, changes)
        described = self.describe_many(many, prompt, options, batch_size, on_progress)
        warn_if_repeated([description.captions[0].text for description in described])
        warn_if_unfamiliar([description.unfamiliar for description in described])
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
        """Describe images by captions, with tokens and log-probabilities, and by embeddings, in a single forward pass.

        The arguments and the errors are those of `caption`. One image yields one description, and a list yields a list.
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
        num_tags: int = 0,
    ) -> list[Description]:
        """Describe a list of images, and return one description per image.

        Args:
            images: Any number of images.
            prompt: Text that begins every caption.
            options: Decoding options.
            batch_size: Maximum number of images per batch.
            on_progress: Called with the number of finished images and the total number of images.
            keys: Key of each image, which seeds the random numbers for this image, so that sampled captions do not
                depend on the other images in the call. By default, the key is the number of the image in the call.
            num_tags: Number of words for each image. If this is not 0, captions come from beam search.

        Raises:
            UserError: As for `caption`, or if words are requested, but this model has no tags, or captions are sampled.
        """
        if num_tags:  # raise errors and compute word embeddings before the first batch
            _ = self.tagger, with_beams(options)

        def work(batch: _Numbered) -> list[Description]:
            names = [number if keys is None else keys[number - 1] for number, _ in batch]
            return self.describe_pixels(self._pixels(batch), prompt, options, names, num_tags)

        return self._run("captioning", images, batch_size, work, on_progress)

    def generate(
        self,
        pixels: UInt8[np.ndarray, "B S S 3"],
        options: GenerationOptions = GREEDY,
        prompt: str = "",
        keys: Sequence[object] | None = None,
    ) -> GeneratedCaptions:
        """Caption preprocessed images; see `grr_coca.infer.generate.generate`."""
        return generate(self.engine, self.tokenizer, pixels, options, prompt, keys)

    def stream(
        self,
        pixels: UInt8[np.ndarray, "B S S 3"],
        options: GenerationOptions = GREEDY,
        prompt: str = "",
        keys: Sequence[object] | None = None,
    ) -> Generator[list[str], None, GeneratedCaptions]:
        """Caption preprocessed images, and yield the new text of each caption after each decoding step.

        See `grr_coca.infer.generate.stream_captions`, which also describes the errors.
        """
        return stream_captions(self.engine, self.tokenizer, pixels, options, prompt, keys)

    def describe_pixels(
        self,
        pixels: UInt8[np.ndarray, "B S S 3"],
        prompt: str = "",
        options: GenerationOptions = GREEDY,
        keys: Sequence[object] | None = None,
        num_tags: int = 0,
        on_text: Callable[[Sequence[str]], None] | None = None,
    ) -> list[Description]:
        """Describe one batch of preprocessed images.

        Args:
            pixels: Images in the form that the engine takes.
            prompt: Text that begins every caption.
            options: Decoding options.
            keys: See `describe_many`.
            num_tags: See `describe_many`.
            on_text: Called after each decoding step with the new text of each caption. If this function is given, the
                options must be valid for `stream_captions`.

        Returns:
            One description per image.

        Raises:
            UserError: If words are requested, but this model has no tags, or captions are sampled, or if a computed
                value is NaN.
        """
        num_captions, options = options.num_captions, with_beams(options) if num_tags else options
        arguments = (pixels, options, prompt, keys)
        generated = self.generate(*arguments) if on_text is None else _run_to_end(self.stream(*arguments), on_text)
        generated.require_no_nan()
        # Each row is copied, so that a caller who stores one row does not keep the whole batch in memory.
        rows = [row.copy() for row in generated.image_embedding]
        tags: Iterable[tuple[Tag, ...]] = ((),) * len(rows)
        if num_tags:
            tags = self.tagger.tags(generated.image_embedding, generated.captions, num_tags)
        kept = [captions[:num_captions] for captions in generated.captions]
        caption_confidences = self.caption_confidences(pixels, kept, prompt)
        return [
            Description(captions, row, certain, self.engine.name, words)
            for captions, row, certain, words in zip(kept, rows, caption_confidences, tags, strict=True)
        ]

    def tag(
        self,
        images: ImagesInput,
        num_tags: int = 5,
        *,
        batch_size: int = _BATCH_SIZE,
        on_progress: OnProgress | None = None,
    ) -> tuple[Tag, ...] | list[tuple[Tag, ...]]:
        """Return the most likely distinct words for images, each with the probability that users would assign that
        word.

        Args:
            images: One or more images.
            num_tags: Number of words for each image.
            batch_size: Maximum number of images per batch.
            on_progress: Called with the number of finished images and the total number of images.

        Raises:
            UserError: If an image cannot be read, this model has no tags, or `num_tags` is not from 1 to 20.
        """
        many, is_single = as_list(images)
        if not 1 <= num_tags <= MAX_TAGS:
            raise UserError(f"num_tags must be from 1 to {MAX_TAGS}, got {num_tags}")
        described = self.describe_many(many, batch_size=batch_size, on_progress=on_progress, num_tags=num_tags)
        return described[0].tags if is_single else [description.tags for description in described]

    @cached_property
    def has_tags(self) -> bool:
        """Whether this model has a vocabulary of tags that was fitted to it."""
        return self.folder is not None and (self.folder / TAGS).exists()

    @cached_property
    def tagger(self) -> Tagger:
        """Tagger of the model.

        If the embeddings of the tagger's words are not stored with the weights, the model computes them once.

        Raises:
            UserError: If no tags were fitted to this model.
        """
        numbers = None if self.folder is None else read_tag_model(self.folder)
        if numbers is None:
            raise UserError("this model has no tags; use the model 'icons'")
        assert self.folder is not None
        stored = read_tag_vectors(self.folder, len(numbers.words)) if self._has_stored_weights else None
        return Tagger(numbers, self.embed_texts(list(numbers.words)) if stored is None else stored)

    def map_batches(
        self, batches: Iterable[Batch], work: Callable[[Batch], Done], take: Callable[[Done], None]
    ) -> None:
        """Apply a function that uses this model to each batch, and pass on the results in order.

        Args:
            batches: Batches, which are read as they are needed.
            work: Function that processes a batch. If the engine has several workers, as for a small model, it is called
                in other threads, for several batches at the same time. Otherwise, it is called in the calling thread.
            take: Function that receives each result. It is called in the calling thread.
        """
        self._batches.map(batches, work, take)

    @cached_property
    def calibration(self) -> Calibration | None:
        """Fitted parameters for confidence and for detecting unfamiliar images. None if this model has no such
        parameters."""
        return None if self.folder is None else read_calibration(self.folder)

    def caption_confidences(
        self, pixels: UInt8[np.ndarray, "B S S 3"], captions: Sequence[Sequence[Caption]], prompt: str = ""
    ) -> list[tuple[CaptionConfidence, ...]]:
        """Return the confidence of each caption of each image.

        Args:
            pixels: The images, in the form that the engine takes.
            captions: Captions of each image.
            prompt: Prompt with which the captions begin. With a prompt, the confidence is unknown, because the
                calibration was fitted to captions without a prompt.
        """
        fitted = self.calibration
        if fitted is None:
            return [(UNKNOWN,) * len(found) for found in captions]

        def confidence(caption: Caption) -> float | None:
            is_whole = caption.token_ids[-1] == self.tokenizer.eos_id
            return fitted.confidence(caption.log_probs) if is_whole and not prompt else None

        return [
            tuple(CaptionConfidence(None if unfamiliar else confidence(caption), unfamiliar) for caption in found)
            for found, unfamiliar in zip(captions, fitted.are_unfamiliar(pixels), strict=True)
        ]

    def are_unfamiliar(self, images: Sequence[ImageInput], *, batch_size: int = _BATCH_SIZE) -> list[bool | None]:
        """Return whether each image is unlike the training images. All values are None if the model has no calibration.

        Raises:
            UserError: If an image cannot be read.
        """
        fitted = self.calibration
        if fitted is None:
            return [None] * len(images)

        def work(batch: _Numbered) -> list[bool]:
            return fitted.are_unfamiliar(self._pixels(batch))

        return list(self._run("inspecting images", images, batch_size, work, None))

    def warn_if_unsuitable(self) -> None:
        """Warn once if the checkpoint marks its embeddings as unsuitable for search and zero-shot classification."""
        if self.caution and not self._has_warned:
            self._has_warned = True
            log.warning("%s", self.caution)

    def embed_images(
        self, images: ImagesInput, *, batch_size: int = _BATCH_SIZE, on_progress: OnProgress | None = None
    ) -> Float[np.ndarray, "*N E"]:
        """Embed images as unit-length vectors in fp32. The shape is N E, or E for a single image.

        Raises:
            UserError: If an image cannot be read, or the model computes NaN.
        """
        self.warn_if_unsuitable()
        many, is_single = as_list(images)
        rows = self._run("embedding images", many, batch_size, self._image_rows, on_progress)
        return self._stack(rows)[0] if is_single else self._stack(rows)

    def embed_texts(
        self, texts: str | Iterable[str], *, batch_size: int = _BATCH_SIZE, on_progress: OnProgress | None = None
    ) -> Float[np.ndarray, "*M E"]:
        """Embed texts as unit-length vectors in fp32. The shape is M E, or E for a single text.

        Raises:
            UserError: If a text is empty or cannot be encoded as UTF-8, or the model computes NaN.
        """
        self.warn_if_unsuitable()
        is_single = isinstance(texts, str)
        many = [texts] if isinstance(texts, str) else list(texts)
        cleaned = [clean_query(text, f"text {number}") for number, text in enumerate(many, 1)]
        rows = self._batches.run("embedding texts", cleaned, batch_size, self._text_rows, on_progress)
        return self._stack(rows)[0] if is_single else self._stack(rows)

    def similarity(
        self, images: ImagesInput, texts: str | Iterable[str], *, batch_size: int = _BATCH_SIZE
    ) -> Float[np.ndarray, "N M"]:
        """Return the cosine similarity between every image and every text.

        The shape is N M, even for a single image or text.

        Raises:
            UserError: If an image cannot be read, a text is empty, or the model computes NaN.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        image_rows = self.embed_images(as_list(images)[0], batch_size=batch_size)
        return image_rows @ self.embed_texts(texts, batch_size=batch_size).T

    def classify(
        self,
        images: ImagesInput,
        labels: Sequence[str],
        *,
        templates: Sequence[str] = BARE_NAME,
        batch_size: int = _BATCH_SIZE,
        on_progress: OnProgress | None = None,
    ) -> list[LabelProbability] | list[list[LabelProbability]]:
        """Classify images with any labels (zero-shot), and return all labels with their probabilities, most likely
        first.

        The embedding of a label is the mean over all templates (CLIP, arXiv 2103.00020, section 3.1.4). The
        probabilities are the softmax of the cosines, multiplied by the model's inverse temperature.

        Args:
            images: One or more images.
            labels: Two or more different labels.
            templates: Texts in which `{}` stands for the label, such as "a drawing of a {}".
            batch_size: Maximum number of images per batch.
            on_progress: Called with the number of finished images and the total number of images.

        Raises:
            UserError: If an image cannot be read, a label is empty or duplicate, there are fewer than two labels, no
                template is given, or a template has no `{}`.
        """
        many, is_single = as_list(images)
        classifier = self.classifier(labels, templates)
        ranked = self.rank_labels(classifier, self.embed_images(many, batch_size=batch_size, on_progress=on_progress))
        return ranked[0] if is_single else ranked

    def classifier(self, labels: Sequence[str], templates: Sequence[str] = BARE_NAME) -> ZeroShotClassifier:
        """Return the zero-shot classifier for the given labels, for repeated calls of `rank_labels`.

        Raises:
            UserError: If a label is empty or duplicate, there are fewer than two labels, no template is given, or a
                template has no `{}`.
        """
        return make_classifier(self.embed_texts, labels, templates)

    def rank_labels(
        self, classifier: ZeroShotClassifier, embeddings: Float[np.ndarray, "N E"]
    ) -> list[list[LabelProbability]]:
        """Return all labels with their probabilities, most likely first, for each embedded image."""
        shares = classifier.probabilities(embeddings, self.engine.logit_scale)
        order = np.argsort(-shares, axis=1, kind="stable")
        names = classifier.class_names
        return [
            [LabelProbability(names[index], share[index]) for index in best]
            for best, share in zip(order.tolist(), shares.tolist(), strict=True)
        ]

    def image_queries(self, vectors: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N E"]:
        """Convert the embeddings of images to queries that find similar images.

        For most models, these are the embeddings themselves. An adapted model changes them.
        """
        return vectors

    def unknown_texts(self, texts: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002 (an adapted model reads them)
        """Return the texts that share no word with the captions that the model was adapted to.

        The result is empty for a model that is not adapted.
        """
        return ()

    def _run(
        self,
        kind: str,
        images: Sequence[ImageInput],
        batch_size: int,
        work: Callable[[_Numbered], Sequence[Done]],
        on_progress: OnProgress | None,
    ) -> list[Done]:
        """Apply a function to images in batches, and return one result per image, in order.

        Args:
            kind: Description of the work.
            images: The images.
            batch_size: Maximum number of images per batch.
            work: Function that processes a batch of numbered images and returns one result per image.
            on_progress: Called with the number of finished images and the total number of images.
        """
        # If an image occurs twice, threads are not used: Pillow is not thread-safe, and two batches could share the
        # image.
        is_each_once = len(set(map(id, images))) == len(images)
        numbered = list(enumerate(images, 1))
        return self._batches.run(kind, numbered, batch_size, work, on_progress, in_threads=is_each_once)

    def _image_rows(self, images: _Numbered) -> list[np.ndarray]:
        return list(self.engine.encode_images(self._pixels(images)).embedding)

    def _text_rows(self, texts: Sequence[str]) -> list[np.ndarray]:
        rows = self.tokenizer.encode_rows(texts, self.engine.context_length)
        return list(self.engine.encode_texts(*rows))

    def _pixels(self, images: _Numbered) -> UInt8[np.ndarray, "B S S 3"]:
        # each image object is processed only once, because Pillow is not thread-safe
        each = {id(image): (number, image) for number, image in images}
        if len(each) == 1 or in_worker():  # starting a thread would take as long as decoding an image
            rows = {identity: self._preprocess(image) for identity, image in each.items()}
        else:
            with thread_pool() as pool:  # decoding and resizing release the interpreter lock
                rows = dict(zip(each, pool.map(self._preprocess, each.values()), strict=True))
        return np.stack([rows[id(image)] for _, image in images])

    def _preprocess(self, numbered: tuple[int, ImageInput]) -> UInt8[np.ndarray, "S S 3"]:
        number, image = numbered
        if isinstance(image, str | Path):
            return np.array(self.preprocess.decode_square(read_file_bytes(image), str(image)))
        if isinstance(image, Image.Image) and self.preprocess.is_square(image):
            return self.preprocess(image)
        return self.preprocess(to_rgb(image, f"image {number}", self.preprocess.opening))

    def _stack(self, rows: list[np.ndarray]) -> Float[np.ndarray, "N E"]:
        """Stack embeddings in one array.

        Raises:
            UserError: If a value is NaN.
        """
        return require_no_nan(np.stack(rows) if rows else np.empty((0, self.engine.embed_dim), np.float32))


_MAX_NAMED = 3
"""Maximum number of unfamiliar images that a warning names."""


def warn_if_unfamiliar(unfamiliar: Sequence[bool | None], names: Sequence[str] = ()) -> None:
    """Log a warning if more than half of the images are unlike the training images. None means unknown.

    If the names of the images are given, the warning is logged if any image is unlike the training images, and names
    the first three of these unless all are.
    """
    total, count = len(unfamiliar), sum(map(bool, unfamiliar))
    if not count or (not names and 2 * count <= total):
        return
    if total == 1:
        of_images = "the image is"
    else:
        named = [escape_control_chars(name) for name in islice(compress(names, unfamiliar), _MAX_NAMED)]
        more = ", …" if count > len(named) else ""
        which = f" ({', '.join(named)}{more})" if named and count < total else ""
        of_images = f"{count:,} of {total:,} images{which} {'is' if count == 1 else 'are'}"
    log.warning(
        "%s unlike the images that this model was trained on; for photographs, add -c %s",
        of_images,
        FOR_PHOTOGRAPHS,
    )


def as_list(images: ImagesInput) -> tuple[list[ImageInput], bool]:
    """Return the images as a list, and whether the input was a single image."""
    if isinstance(images, str | Path | Image.Image):
        return [images], True
    if (num_axes := getattr(images, "ndim", None)) is not None:  # an array or tensor
        return (list(images), False) if num_axes == 4 else ([images], True)  # type: ignore[list-item]
    return list(images), False


def _run_to_end(
    stream: Generator[list[str], None, GeneratedCaptions], on_text: Callable[[Sequence[str]], None]
) -> GeneratedCaptions:
    """Run a generator of caption pieces to its end, pass the pieces to `on_text`, and return the generator's result."""
    while True:
        try:
            on_text(next(stream))
        except StopIteration as end:
            generated: GeneratedCaptions = end.value
            return generated


def _with_changes(options: GenerationOptions, changes: dict[str, object]) -> GenerationOptions:
    """Return a copy of the options with some fields changed.

    Raises:
        UserError: If a field does not exist, a value is out of range, or options contradict each other.
    """
    names = [field.name for field in fields(options)]
    for name in changes:
        if name not in names:
            raise UserError(f"unknown captioning option '{name}'; {suggest_name(name, names)}")
    return replace(options, **changes) if changes else options  # type: ignore[arg-type]
