"""Captioning: greedy decoding of a batch of images.

Shapes: B images, S image size in pixels, T text positions.
"""

import logging
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.checkpoint import Checkpoint
from grr_coca.evaluate.mode import evaluating
from grr_coca.model import CoCa

log = logging.getLogger(__name__)


def caption_images(checkpoint: Checkpoint, images: Float[Tensor, "B 3 S S"]) -> list[str]:
    """The most likely caption, word by word, of each preprocessed image."""
    tokenizer = checkpoint.tokenizer
    max_words = checkpoint.config.text_decoder.context_length - 3  # [BOS], [EOS] and [CLS] take their places
    ids = greedy(checkpoint.model, images, tokenizer.bos_id, tokenizer.eos_id, max_words)
    captions = [tokenizer.decode(row) for row in ids.tolist()]
    warn_if_repeated(captions)
    return captions


@torch.inference_mode()
def greedy(
    model: CoCa, images: Float[Tensor, "B 3 S S"], bos_id: int, eos_id: int, max_words: int
) -> Int[Tensor, "B T"]:
    """Append the likeliest token until every row has ended; a row that has ended repeats its end token.

    The images are encoded once. The returned ids begin after [BOS]; at most `max_words` words precede the end.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        image = model.encode_image(images.to(device))
        ids = torch.full((len(images), 1), bos_id, device=device)
        ended = torch.zeros(len(images), dtype=torch.bool, device=device)
        for _ in range(max_words):
            next_id = _next_logits(model, ids, image.tokens).argmax(dim=-1)
            next_id = torch.where(ended, eos_id, next_id)
            ids = torch.cat([ids, next_id[:, None]], dim=1)
            ended |= next_id == eos_id
            if ended.all():
                break
    return ids[:, 1:]


def _next_logits(model: CoCa, ids: Int[Tensor, "B T"], image_tokens: Tensor) -> Float[Tensor, "B V"]:
    text_tokens = model.text_decoder.prefix(ids)
    return model.multimodal_decoder(text_tokens, image_tokens)[:, -1]


def warn_if_repeated(captions: Sequence[str]) -> None:
    """Warn when most of many images got one and the same caption: the sign of weights that were never trained."""
    if len(captions) < 8:
        return
    caption, count = Counter(captions).most_common(1)[0]
    if count > len(captions) / 2:
        log.warning(
            "%d of %d images got the same caption, '%s': is this the right checkpoint?", count, len(captions), caption
        )
