"""Greedy decoding and sampling: captions side by side, each by itself.

Shapes: B images, R rows of captions (n per image, in a row), T new tokens at most, P prompt tokens, V vocabulary.
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
"""Images whose captions have ended leave the batch when no more than this part of it is still going on: leaving
copies the caches of those that stay, which a step or two with fewer rows pays for."""


class Rows:
    """What the captions have so far. Rows that have left the batch keep their place here."""

    def __init__(self, num_rows: int, max_length: int, device: torch.device) -> None:
        self.token_ids = torch.zeros(num_rows, max_length, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(num_rows, max_length, device=device)
        self.lengths = torch.full((num_rows,), max_length, device=device)
        self.running = torch.arange(num_rows, device=device)
        """Rows that are in the batch, ended or not."""
        self.ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
        """Of those in the batch."""

    def append(self, step: int, next_ids: Int[Tensor, " R"], log_probs: Float[Tensor, "R V"], eos_id: int) -> None:
        """Write the token of a step into every row in the batch."""
        self.token_ids[self.running, step] = next_ids
        self.log_probs[self.running, step] = log_probs.gather(1, next_ids[:, None])[:, 0].float()
        ends = (next_ids == eos_id) & ~self.ended
        self.lengths[self.running[ends]] = step + 1
        self.ended |= ends

    def hypotheses(self, num_per_image: int) -> list[list[Hypothesis]]:
        """Those of each image, the likeliest per token first."""
        found = []
        for ids, log_probs, length in zip(
            self.token_ids.tolist(), self.log_probs.tolist(), self.lengths.tolist(), strict=True
        ):
            score = sum(log_probs[:length]) / length
            found.append(Hypothesis(tuple(ids[:length]), tuple(log_probs[:length]), score))
        images = [found[i : i + num_per_image] for i in range(0, len(found), num_per_image)]
        return [sorted(image, key=lambda hypothesis: -hypothesis.score) for image in images]


def decode_rows(
    decoder: CachedDecoder,
    prompt_ids: Int[Tensor, " P"],
    options: GenerationOptions,
    max_length: int,
    eos_id: int,
    uniforms: Float[Tensor, "R T"] | None,
) -> list[list[Hypothesis]]:
    """Append the likeliest token, or one drawn with `uniforms`, to each caption until all have ended."""
    num_captions = options.num_captions
    logits = decoder.step(prompt_ids.expand(decoder.num_images, -1)).repeat_interleave(num_captions, dim=0)
    if num_captions > 1:
        decoder.repeat(num_captions)
    rows = Rows(len(logits), max_length, logits.device)
    for step in range(max_length):
        log_probs = logits.log_softmax(dim=-1)
        allowed = apply_rules(log_probs, rows.token_ids[rows.running, :step], options, eos_id)
        require_a_choice(allowed, ~rows.ended)
        next_ids = allowed.argmax(dim=-1) if uniforms is None else draw(allowed, uniforms[rows.running, step], options)
        rows.append(step, next_ids, log_probs, eos_id)
        if rows.ended.all() or step + 1 == max_length:
            break
        logits = decoder.step(_compact(decoder, rows, next_ids, num_captions)[:, None])
    return rows.hypotheses(num_captions)


def _compact(decoder: CachedDecoder, rows: Rows, next_ids: Int[Tensor, " R"], num_captions: int) -> Int[Tensor, " _"]:
    """Let images go whose captions have all ended, when there are enough of them."""
    going_on = ~rows.ended.unflatten(0, (-1, num_captions)).all(dim=1)  # B
    if going_on.sum() > KEPT_AT_MOST * len(going_on):
        return next_ids
    stay = going_on.repeat_interleave(num_captions)
    decoder.keep(going_on.nonzero()[:, 0], stay.nonzero()[:, 0])
    rows.running, rows.ended = rows.running[stay], rows.ended[stay]
    return next_ids[stay]
