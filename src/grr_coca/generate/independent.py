"""Greedy decoding and sampling. Each caption of the batch is decoded independently.

Shapes: B images, R rows of captions (the captions of one image are neighbours), T new tokens at most, P prompt tokens,
V vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.generate.decoder import CachedDecoder
from grr_coca.generate.hypothesis import Hypothesis
from grr_coca.generate.options import GenerationOptions
from grr_coca.generate.rules import apply_rules, require_a_choice
from grr_coca.generate.sampling import draw

KEPT_AT_MOST = 0.75
"""Images whose captions have all ended leave the batch when at most this share of the batch is unfinished. That copies
the caches of the images that stay. One or two steps with fewer rows make up for the copy."""


class CaptionsInProgress:
    """The tokens of all captions so far. A caption stays here after its row has left the batch."""

    def __init__(self, num_rows: int, max_length: int, device: torch.device) -> None:
        self.token_ids = torch.zeros(num_rows, max_length, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(num_rows, max_length, dtype=torch.float32, device=device)
        self.lengths = torch.full((num_rows,), max_length, device=device)
        self.running = torch.arange(num_rows, device=device)
        """Numbers of the captions whose rows are in the batch, ended or not."""
        self.ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
        """Which captions of the batch have ended."""

    def append(self, step: int, next_ids: Int[Tensor, " R"], log_probs: Float[Tensor, "R V"], eos_id: int) -> None:
        """Add the token of a step to every caption in the batch."""
        self.token_ids[self.running, step] = next_ids
        self.log_probs[self.running, step] = log_probs.gather(1, next_ids[:, None])[:, 0].float()
        ends = (next_ids == eos_id) & ~self.ended
        self.lengths[self.running[ends]] = step + 1
        self.ended |= ends

    def hypotheses(self, num_per_image: int) -> list[list[Hypothesis]]:
        """The captions of each image, ranked by log-probability per token, best first."""
        found = []
        for ids, log_probs, length in zip(
            self.token_ids.tolist(), self.log_probs.tolist(), self.lengths.tolist(), strict=True
        ):
            score = sum(log_probs[:length]) / length
            found.append(Hypothesis(tuple(ids[:length]), tuple(log_probs[:length]), score))
        images = [found[i : i + num_per_image] for i in range(0, len(found), num_per_image)]
        return [sorted(image, key=lambda hypothesis: -hypothesis.score) for image in images]


def decode_independently(
    decoder: CachedDecoder,
    prompt_ids: Int[Tensor, " P"],
    options: GenerationOptions,
    max_length: int,
    eos_id: int,
    uniforms: Float[Tensor, "R T"] | None,
) -> list[list[Hypothesis]]:
    """Append tokens to each caption until all have ended.

    Args:
        decoder: the model with empty caches.
        prompt_ids: the tokens that every caption begins with.
        options: how to decode.
        max_length: new tokens at most.
        eos_id: the end token.
        uniforms: random numbers in [0, 1), on the CPU, that decide which tokens are sampled; None: take the likeliest
            token.
    """
    num_captions = options.num_captions
    logits = decoder.step(prompt_ids.expand(decoder.num_images, -1)).repeat_interleave(num_captions, dim=0)
    if num_captions > 1:
        decoder.repeat(num_captions)
    captions = CaptionsInProgress(len(logits), max_length, logits.device)
    for step in range(max_length):
        log_probs = logits.log_softmax(dim=-1)
        allowed = apply_rules(log_probs, captions.token_ids[captions.running, :step], options, eos_id)
        require_a_choice(allowed, ~captions.ended)
        if uniforms is None:
            next_ids = allowed.argmax(dim=-1)
        else:
            next_ids = draw(allowed, uniforms[captions.running.cpu(), step], options)
        captions.append(step, next_ids, log_probs, eos_id)
        if captions.ended.all() or step + 1 == max_length:
            break
        logits = decoder.step(_compact(decoder, captions, next_ids, num_captions)[:, None])
    return captions.hypotheses(num_captions)


def _compact(
    decoder: CachedDecoder, captions: CaptionsInProgress, next_ids: Int[Tensor, " R"], num_captions: int
) -> Int[Tensor, " _"]:
    """Remove the images whose captions have all ended, if there are enough of them. Returns the tokens of the rows that
    stay."""
    going_on = ~captions.ended.unflatten(0, (-1, num_captions)).all(dim=1)  # B
    if going_on.sum() > KEPT_AT_MOST * len(going_on):
        return next_ids
    stay = going_on.repeat_interleave(num_captions)
    decoder.keep(going_on.nonzero()[:, 0], stay.nonzero()[:, 0])
    captions.running, captions.ended = captions.running[stay], captions.ended[stay]
    return next_ids[stay]
