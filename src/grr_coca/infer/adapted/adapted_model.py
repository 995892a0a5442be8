"""Adapted model with the interface of `ImageTextModel`. It uses the engine of its base, but its own vectors and
captions.

Shapes: B images or texts, S image size in pixels, K width of a vector.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.shapes import Float, UInt8
from grr_coca.infer.adapted.adaptation import Adaptation, read_adaptation
from grr_coca.infer.adapted.beside import LoadModel, MeanTokenDescriptor, read_extra_encoder, take_encoder_pixels
from grr_coca.infer.adapted.captioner import (
    add_log_probs,
    beam_captions,
    collect_candidates,
    confidence_features,
    make_shortlist,
    rank_candidates,
    select_enabled,
    sum_log_probs,
)
from grr_coca.infer.adapted.descriptors import descriptors
from grr_coca.infer.calibration import CaptionConfidence
from grr_coca.infer.engine.base import Decoder, EncodedImages, Engine, WrappedEngine
from grr_coca.infer.generate import GREEDY, GenerationOptions
from grr_coca.infer.generate.captions import Caption, GeneratedCaptions, require_no_nan
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.checkpoint_files import CheckpointFiles

if TYPE_CHECKING:
    from grr_coca.model.checkpoint import Checkpoint


class _Context(NamedTuple):
    """Context from the base's engine, and for each image the kernel value of the nearest fitted image."""

    base: Any
    nearest: Float[np.ndarray, " B"]


class AdaptedEngine(WrappedEngine):
    """Engine of the base in which adapted vectors replace the image embeddings.

    Text embeddings are those of the base. `AdaptedModel` converts them to vectors, because this also requires the words
    of the texts.

    Args:
        base: Engine of the base.
        adaptation: Parameters of the model.
        descriptor: Image encoder that is used next to the base or in place of it. None if the model has no such
            encoder.
    """

    def __init__(self, base: Engine, adaptation: Adaptation, descriptor: MeanTokenDescriptor | None = None) -> None:
        super().__init__(base)
        self.adaptation, self.descriptor = adaptation, descriptor
        self.embed_dim = adaptation.size
        self.logit_scale, self.logit_bias = adaptation.header.logit_scale, None

    def encode_images(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> EncodedImages:
        """Encode images; see `Engine`."""
        encoded, parts = self.base.encode_images(pixels), []
        if not self.adaptation.is_without_images:
            parts.append(descriptors(pixels))
        if self.descriptor is not None:
            parts.append(self.descriptor.scale(self.descriptor.mean_tokens(pixels)))
        described = np.concatenate(parts, axis=1)
        vectors, nearest = self.adaptation.image_vectors(encoded.embedding, described)
        return EncodedImages(vectors, _Context(encoded.context, nearest))

    def decoder(
        self, images: EncodedImages, *, num_prompt: int, max_tokens: int, num_captions: int = 1, beams: bool = False
    ) -> Decoder:
        """Create a decoder; see `Engine`."""
        of_base = EncodedImages(images.embedding, images.context.base)
        return super().decoder(
            of_base, num_prompt=num_prompt, max_tokens=max_tokens, num_captions=num_captions, beams=beams
        )


class AdaptedModel(ImageTextModel):
    """Model adapted to a user's pairs.

    Captions are chosen from the captions of similar images, joined parts of these captions, and beams. If a prompt is
    given, or if any option except the numbers of beams and captions is changed, the base's decoder generates the
    captions instead.

    Args:
        checkpoint: Files of the base, or its checkpoint.
        engine: Engine of the base.
        folder: Folder of the adapted model.
        load: Function that loads a model. It loads the start model of the base, if features of the start model are
            used.

    Raises:
        UserError: If a file is missing or corrupt, the adaptation does not match the base, or its encoder cannot be
            opened.
    """

    def __init__(self, checkpoint: CheckpointFiles, engine: Engine, folder: Path, load: LoadModel) -> None:
        self.adaptation = read_adaptation(folder)
        if engine.embed_dim != len(self.adaptation.arrays.image_mean):
            raise UserError(f"{folder}: the adaptation does not match the base model; run `grr-coca adapt` again")
        self._base = checkpoint
        descriptor = read_extra_encoder(folder, load, is_in_place=self.adaptation.is_without_images)
        if descriptor is not None:
            checkpoint, engine = take_encoder_pixels(checkpoint, engine, descriptor)
        super().__init__(checkpoint, AdaptedEngine(engine, self.adaptation, descriptor), folder)

    @property
    def checkpoint(self) -> "Checkpoint":
        """Base model in PyTorch, with its own preprocessing.

        Raises:
            UserError: If the model runs in another engine.
        """
        assert super().checkpoint
        return cast("Checkpoint", self._base)

    @property
    def can_decode(self) -> bool:
        """Whether the base's decoder can generate captions. False if the model takes features, which the decoder cannot
        read."""
        return not self.adaptation.is_without_images

    def image_queries(self, vectors: Float[np.ndarray, "B K"]) -> Float[np.ndarray, "B K"]:
        """Convert the vectors of images to queries that find similar images; see `Adaptation.image_queries`."""
        return self.adaptation.image_queries(vectors)

    def unknown_texts(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return the texts without any known word. The vector of such a text depends only on the base's text
        embedding."""
        return tuple(text for text in texts if not self.adaptation.vocabulary.knows(text))

    def generate(
        self,
        pixels: UInt8[np.ndarray, "B S S 3"],
        options: GenerationOptions = GREEDY,
        prompt: str = "",
        keys: Sequence[object] | None = None,
    ) -> GeneratedCaptions:
        """Caption images; see `ImageTextModel.generate`."""
        if prompt or replace(options, num_beams=1, num_captions=1) != GREEDY:
            self._require_decoder()
            return super().generate(pixels, options, prompt, keys)
        captioning = self.adaptation.header.captioning
        engine = self.engine
        encoded = engine.encode_images(pixels)
        beams: list[list[str]] = [[] for _ in range(len(pixels))]
        count = max(captioning.beams, options.num_captions if captioning.beams else 0)
        if count:
            beams = beam_captions(engine, self.tokenizer, pixels, count)
        found = collect_candidates(self.adaptation, encoded.embedding, captioning, beams)
        summed: list[dict[str, float]] = [{} for _ in found]
        if captioning.log_prob_weight:
            short = [make_shortlist(select_enabled(own, captioning)).texts for own in found]
            summed = sum_log_probs(engine, self.tokenizer, encoded, short)
        texts, certain = [], []
        for own, log_probs, nearest in zip(found, summed, encoded.context.nearest.tolist(), strict=True):
            best, scores = rank_candidates(own, captioning, log_probs)
            texts.append(best[: options.num_captions])
            certain.append([self._confidence(scores[rank:], nearest) for rank in range(len(texts[-1]))])
        if not self.can_decode:
            chosen = [[Caption(text, (), ()) for text in own] for own in texts]
        else:
            chosen = add_log_probs(engine, self.tokenizer, encoded, texts)
        captions = [
            [caption._replace(confidence=sure) for caption, sure in zip(own, sures, strict=True)]
            for own, sures in zip(chosen, certain, strict=True)
        ]
        return GeneratedCaptions(captions, encoded.embedding)

    def stream(
        self,
        pixels: UInt8[np.ndarray, "B S S 3"],
        options: GenerationOptions = GREEDY,
        prompt: str = "",
        keys: Sequence[object] | None = None,
    ) -> Generator[list[str], None, GeneratedCaptions]:
        """Caption images, and yield the text of each caption in one piece.

        If a prompt is given or any option is changed, the base's decoder generates the captions, and they are yielded
        in pieces; see `ImageTextModel.stream`.
        """
        if prompt or options != GREEDY:
            self._require_decoder()
            return (yield from super().stream(pixels, options, prompt, keys))
        found = self.generate(pixels, options, prompt, keys)
        yield [captions[0].text for captions in found.captions]
        return found

    def caption_confidences(
        self,
        pixels: UInt8[np.ndarray, "B S S 3"],  # noqa: ARG002 (used when the captions were chosen)
        captions: Sequence[Sequence[Caption]],
        prompt: str = "",  # noqa: ARG002 (captions after a prompt have no confidence)
    ) -> list[tuple[CaptionConfidence, ...]]:
        """Return the confidence of each caption, which is unknown if the base's decoder generated the caption.

        Adapted models do not detect unfamiliar images.
        """
        return [tuple(CaptionConfidence(caption.confidence, None) for caption in own) for own in captions]

    def _require_decoder(self) -> None:
        if not self.can_decode:
            raise UserError(
                "this model takes features, which its decoder cannot read, so its captions are those of its pairs; "
                "omit the prompt and all captioning options"
            )

    def _confidence(self, scores: Float[np.ndarray, " _"], nearest: float) -> float | None:
        curve = self.adaptation.header.captioning.confidence
        if curve is None:
            return None
        return float(curve.probabilities(np.array([confidence_features(scores, nearest)]))[0])

    def _text_rows(self, texts: Sequence[str]) -> list[np.ndarray]:
        vectors = self.adaptation.text_vectors(texts, np.stack(super()._text_rows(texts)))
        return list(require_no_nan(vectors))
