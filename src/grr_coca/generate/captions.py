"""From images to captions.

Shapes: B images, S image size in pixels, E joint embedding width.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from grr_coca.data.text import clean_prompt
from grr_coca.data.tokenizer import Tokenizer
from grr_coca.errors import UserError
from grr_coca.fast.model_copy import fast_copy
from grr_coca.generate.beams import BeamSearch
from grr_coca.generate.decoder import CachedDecoder, Hypothesis
from grr_coca.generate.options import GREEDY, GenerationOptions
from grr_coca.generate.sampling import NAN_RESULTS, decode_independently, uniform_draws
from grr_coca.model import CoCa
from grr_coca.model.coca import EncodedImage, evaluating

log = logging.getLogger(__name__)


class Caption(NamedTuple):
    """`text`: the prompt and the new words. `token_ids`: the new tokens, with the end token if there is one.
    `log_probs`: the log-probability of each new token in the model's own distribution, before options change it."""

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]


class Generated(NamedTuple):
    """Captions (best first) and the unit-length embedding of each image, from one forward pass.

    Sampled captions are ranked by log-probability per token, beams by `GenerationOptions.length_penalty`.
    """

    captions: list[list[Caption]]
    image_embedding: Float[Tensor, "B E"]

    def require_numbers(self) -> None:
        """Raise an error if a log-probability is NaN. Validation during training does not call this, so that the run
        continues.

        Raises:
            UserError: a log-probability is NaN.
        """
        if any(math.isnan(number) for image in self.captions for caption in image for number in caption.log_probs):
            raise UserError(NAN_RESULTS)


def generate(
    model: CoCa,
    tokenizer: Tokenizer,
    images: Float[Tensor, "B 3 S S"],
    options: GenerationOptions = GREEDY,
    prompt: str = "",
    keys: Sequence[object] | None = None,
) -> Generated:
    """Caption preprocessed images, in eval mode. The model's mode is restored.

    Args:
        model: any CoCa. On a CPU, a fast copy of it is made for this call. A caller with many batches makes the copy
            once, and passes it in place of the model (`grr_coca.fast.model_copy.fast_copy`).
        tokenizer: the tokenizer that the model was trained with.
        images: on any device, in any precision.
        options: how to decode.
        prompt: the words that every caption begins with.
        keys: a name for each image, which seeds its random numbers; None: its index in `images`. With keys, sampled
            captions do not depend on how the images were put into batches.

    Raises:
        UserError: the prompt or `max_length` does not fit the context, the rules leave no token, or there is no image.
    """
    if len(images) == 0:
        raise UserError("there is no image to caption")
    with torch.inference_mode(), evaluating(model):
        fast = fast_copy(model)
        image = fast.encode_image(images.to(model.device, model.logit_scale.dtype))
        captions = _caption_encoded(fast, tokenizer, image, options, prompt, keys)
    # A clone is not an inference tensor, so the caller may train with it.
    return Generated(captions, image.embedding.clone())


def _caption_encoded(
    model: CoCa,
    tokenizer: Tokenizer,
    image: EncodedImage,
    options: GenerationOptions,
    prompt: str,
    keys: Sequence[object] | None,
) -> list[list[Caption]]:
    prompt_ids = [tokenizer.bos_id, *tokenizer.encode(clean_prompt(prompt))]
    max_length = _max_length(options, model.text_decoder.context_length, len(prompt_ids))
    num_images = len(image.tokens)
    keys = range(num_images) if keys is None else keys
    if len(keys) != num_images:
        raise UserError(f"{len(keys)} keys for {num_images} images; give one for each")
    found = _search(model, image, torch.tensor(prompt_ids), options, max_length, tokenizer.eos_id, keys)
    return [[_caption(tokenizer, prompt_ids, hypothesis) for hypothesis in hypotheses] for hypotheses in found]


def _search(
    model: CoCa,
    image: EncodedImage,
    prompt_ids: Tensor,
    options: GenerationOptions,
    max_length: int,
    eos_id: int,
    keys: Sequence[object],
) -> list[list[Hypothesis]]:
    prompt_ids = prompt_ids.to(image.tokens.device)
    num_slots = len(prompt_ids) + options.num_beams * (max_length - 1)
    num_captions = max(options.num_beams, options.num_captions)
    num_reads = len(prompt_ids) + num_captions * (max_length - 1)
    decoder = CachedDecoder(model, image.tokens, num_slots, num_captions, num_reads)
    if options.num_beams > 1:
        return BeamSearch(decoder, prompt_ids, options, max_length, eos_id).run()
    uniforms = None
    if options.temperature is not None:
        uniforms = uniform_draws(options.seed, keys, options.num_captions, max_length)
    return decode_independently(decoder, prompt_ids, options, max_length, eos_id, uniforms)


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


def _caption(tokenizer: Tokenizer, prompt_ids: Sequence[int], hypothesis: Hypothesis) -> Caption:
    text = tokenizer.decode([*prompt_ids, *hypothesis.token_ids])
    return Caption(text, hypothesis.token_ids, hypothesis.log_probs)


def warn_if_repeated(captions: Sequence[str]) -> None:
    """Warn if more than half of eight or more images got the same caption, as with weights that were never trained."""
    if len(captions) < 8:
        return
    caption, count = Counter(captions).most_common(1)[0]
    if count > len(captions) / 2:
        log.warning(
            "%d of %d images got the same caption, '%s': is this the right checkpoint?", count, len(captions), caption
        )
