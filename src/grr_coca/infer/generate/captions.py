"""From images to captions.

Shapes: B images, S image size in pixels, E joint embedding width, R captions (rows), P prompt tokens.
"""

import logging
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.shapes import Float, Int, UInt8
from grr_coca.data.text import clean_prompt
from grr_coca.data.tokenizer import Tokenizer
from grr_coca.infer.engine.base import EncodedImages, Engine
from grr_coca.infer.generate.beams import BeamSearch
from grr_coca.infer.generate.options import GREEDY, GenerationOptions
from grr_coca.infer.generate.sampling import (
    CaptionsInProgress,
    Hypothesis,
    decode_independently,
    require_numbers,
    uniform_draws,
)

log = logging.getLogger(__name__)


class Caption(NamedTuple):
    """One caption. `text`: the prompt and the new words. `token_ids`: the new tokens, with the end token if there is
    one. `log_probs`: the log-probability of each new token in the model's own distribution, before options change
    it. `confidence`: the probability that it is exactly right, of a caption that an adapted model chose."""

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    confidence: float | None = None


class GeneratedCaptions(NamedTuple):
    """Captions (best first) and the unit-length embedding of each image, from one forward pass.

    Sampled captions are ranked by log-probability per token, beams by `GenerationOptions.length_penalty`.
    """

    captions: list[list[Caption]]
    image_embedding: Float[np.ndarray, "B E"]

    def require_numbers(self) -> None:
        """Raise an error if a log-probability or an embedding is NaN. Validation during training does not call this, so
        that the run continues.

        Raises:
            UserError: one of them is NaN.
        """
        require_numbers(self.image_embedding)
        for image in self.captions:
            for caption in image:
                require_numbers(np.array(caption.log_probs))


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    pixels: UInt8[np.ndarray, "B S S 3"],
    options: GenerationOptions = GREEDY,
    prompt: str = "",
    keys: Sequence[object] | None = None,
) -> GeneratedCaptions:
    """Caption images.

    Args:
        engine: the model.
        tokenizer: the tokenizer that the model was trained with.
        pixels: RGB images, cropped and resized to squares of the model's size (`Preprocess`).
        options: how to decode.
        prompt: the words that every caption begins with.
        keys: a name for each image, which seeds its random numbers; None: its index in `pixels`. With keys, sampled
            captions do not depend on how the images were put into batches.

    Raises:
        UserError: the prompt or `max_length` does not fit the context, the rules leave no token, or there is no image.
    """
    captioning = _Captioning(engine, tokenizer, options, prompt, _keys(keys, len(pixels)))
    images = engine.encode_images(pixels)
    if options.num_beams > 1:
        found = captioning.search(images)
    else:
        *_, captions = captioning.decode(images)
        found = captions.hypotheses(options.num_captions)
    return captioning.generated(images, found)


def stream_captions(
    engine: Engine,
    tokenizer: Tokenizer,
    pixels: UInt8[np.ndarray, "B S S 3"],
    options: GenerationOptions = GREEDY,
    prompt: str = "",
    keys: Sequence[object] | None = None,
) -> Generator[list[str], None, GeneratedCaptions]:
    """Caption images as `generate` does, and yield the new text of each caption after each step of decoding.

    The pieces of a caption, one after the other, are its text. The first one begins with the prompt. A piece may be
    empty: the caption has ended, or a character is not complete yet. The generator returns what `generate` returns.

    Arguments are those of `generate`, with options of greedy decoding or of sampling a single caption for each image.

    Raises:
        UserError: as for `generate`; or captions of these options are known only when all have ended.
    """
    if options.num_beams > 1 or options.num_captions > 1:
        raise UserError(
            "beams, and several captions of an image, are ranked when all have ended: stream one caption without beams"
        )
    captioning = _Captioning(engine, tokenizer, options, prompt, _keys(keys, len(pixels)))
    images = engine.encode_images(pixels)
    told = [""] * len(pixels)
    for captions in captioning.decode(images):
        texts = captioning.texts_so_far(captions)
        yield [text[len(before) :] for text, before in zip(texts, told, strict=True)]
        told = texts
    return captioning.generated(images, captions.hypotheses(1))


def _keys(keys: Sequence[object] | None, num_images: int) -> Sequence[object]:
    """A key for each image."""
    if num_images == 0:
        raise UserError("there is no image to caption")
    if keys is not None and len(keys) != num_images:
        raise UserError(f"{len(keys)} keys for {num_images} images; give one for each")
    return range(num_images) if keys is None else keys


class _Captioning:
    """One call of `generate` or `stream_captions`: its options, its prompt, and the engine."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, options: GenerationOptions, prompt: str, keys: Sequence[object]
    ) -> None:
        self.engine, self.tokenizer, self.options, self.keys = engine, tokenizer, options, keys
        self.prompt_ids = [tokenizer.bos_id, *tokenizer.encode(clean_prompt(prompt) if prompt else "")]
        self.max_length = _max_length(options, engine.context_length, len(self.prompt_ids))

    def search(self, images: EncodedImages) -> list[list[Hypothesis]]:
        """Beam search."""
        decoder = self.engine.decoder(
            images,
            num_prompt=len(self.prompt_ids),
            max_tokens=self.max_length,
            num_captions=self.options.num_beams,
            beams=True,
        )
        return BeamSearch(decoder, self._prompts(), self.options, self.max_length, self.tokenizer.eos_id).run()

    def decode(self, images: EncodedImages) -> Iterator[CaptionsInProgress]:
        """Greedy decoding or sampling, step by step."""
        options, max_length, uniforms = self.options, self.max_length, None
        if options.temperature is not None:
            uniforms = uniform_draws(options.seed, self.keys, options.num_captions, max_length)
        decoder = self.engine.decoder(
            images, num_prompt=len(self.prompt_ids), max_tokens=max_length, num_captions=options.num_captions
        )
        return decode_independently(decoder, self._prompts(), options, max_length, self.tokenizer.eos_id, uniforms)

    def generated(self, images: EncodedImages, found: list[list[Hypothesis]]) -> GeneratedCaptions:
        """The result, with the texts of the captions."""
        captions = [
            [Caption(self.text(ids), ids, log_probs) for ids, log_probs, _ in hypotheses] for hypotheses in found
        ]
        return GeneratedCaptions(captions, images.embedding)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of new tokens, after the prompt."""
        return self.tokenizer.decode([*self.prompt_ids, *token_ids])

    def texts_so_far(self, captions: CaptionsInProgress) -> list[str]:
        """The text of each caption, as far as it cannot change: without bytes that may begin a character."""
        texts = []
        for ids, length in zip(captions.token_ids.tolist(), captions.lengths.tolist(), strict=True):
            is_whole = length == self.max_length or ids[length - 1] == self.tokenizer.eos_id
            text = self.text(ids[:length])
            texts.append(text if is_whole else text.rstrip(_INCOMPLETE))
        return texts

    def _prompts(self) -> Int[np.ndarray, "B P"]:
        return np.array([self.prompt_ids] * len(self.keys), dtype=np.int64)


_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What decoding gives for bytes that are no character, such as the first bytes of one."""


def _max_length(options: GenerationOptions, context_length: int, num_prompt_ids: int) -> int:
    """The maximum number of new tokens. The context must also hold [BOS], the prompt, [EOS] and [CLS]."""
    room = context_length - num_prompt_ids - 2
    if room < 1:
        raise UserError(f"the prompt has {num_prompt_ids - 1} tokens; give {context_length - 4} at most, to leave room")
    if options.max_length is not None and options.max_length > room:
        raise UserError(
            f"max_length {options.max_length} is more than the {room} tokens that the context of {context_length} "
            f"holds after a prompt of {num_prompt_ids - 1}"
        )
    if options.min_length > room:
        raise UserError(f"min_length {options.min_length} is more than the {room} tokens that the context holds")
    return options.max_length or room


def warn_if_repeated(captions: Sequence[str]) -> None:
    """Warn if more than half of eight or more images got the same caption, as with weights that were never trained."""
    if len(captions) < 8:
        return
    caption, count = Counter(captions).most_common(1)[0]
    if count > len(captions) / 2:
        log.warning(
            "%d of %d images got the same caption, '%s': is this the right checkpoint?", count, len(captions), caption
        )
