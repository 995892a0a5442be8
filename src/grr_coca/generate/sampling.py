"""Greedy decoding and sampling: how the next token is chosen, and the loop that appends it to every caption.

Each caption of the batch is decoded independently. Beam search takes the rules and `largest` from here.

Shapes: B images, R rows of captions (the captions of one image are neighbours), T new tokens so far (or at most), P
prompt tokens, K tokens that are kept, V vocabulary. A token that is ruled out has log-probability -inf.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from grr_coca.errors import UserError
from grr_coca.generate.decoder import CachedDecoder, Hypothesis
from grr_coca.generate.options import GenerationOptions

# --- The k largest of very many numbers

BLOCK = 64


def largest(values: Float[Tensor, "R V"], k: int) -> tuple[Float[Tensor, "R K"], Int[Tensor, "R K"]]:
    """The k largest numbers of each row, in descending order, and their indices.

    The result is that of `torch.topk`, which takes ten times as long for a vocabulary of 50,000 on a CPU. Here the row
    is cut into blocks. The k largest numbers lie in the k blocks with the largest maxima. So only the maxima and the
    numbers of these k blocks are ranked.
    """
    num_blocks = -(-values.shape[1] // BLOCK)
    if 2 * k >= num_blocks:
        top, where = values.topk(min(k, values.shape[1]))
        return top, where
    missing = num_blocks * BLOCK - values.shape[1]
    padded = F.pad(values, (0, missing), value=-torch.inf) if missing else values  # padding copies, even by nothing
    blocks = padded.unflatten(1, (-1, BLOCK))
    best_blocks = blocks.amax(dim=-1).topk(k, sorted=False).indices  # R K
    within = blocks.gather(1, best_blocks[..., None].expand(-1, -1, BLOCK)).flatten(1)  # R, K · BLOCK
    top, where = within.topk(k)
    return top, best_blocks.gather(1, where // BLOCK) * BLOCK + where % BLOCK


# --- Rules for the next token

NAN_RESULTS = "the model computes NaN: its weights are damaged, or its training diverged"
NOTHING_LEFT = "the rules leave no token to continue with: lower min_length, or raise no_repeat_ngram or set it to 0"


def apply_rules(
    log_probs: Float[Tensor, "R V"], new_ids: Int[Tensor, "R T"], options: GenerationOptions, eos_id: int
) -> Float[Tensor, "R V"]:
    """Apply all rules of the options. If there are none, the input itself is returned."""
    if options.repetition_penalty != 1:
        log_probs = penalize_repetition(log_probs, new_ids, options.repetition_penalty)
    if new_ids.shape[1] < options.min_length:
        log_probs = without_end(log_probs, eos_id)
    if options.no_repeat_ngram:
        log_probs = without_repeated_ngrams(log_probs, new_ids, options.no_repeat_ngram)
    return log_probs


def require_a_choice(log_probs: Float[Tensor, "R V"], unfinished: Bool[Tensor, " R"]) -> None:
    """Raise an error if the rules leave no token for a caption that has not ended.

    Raises:
        UserError: a caption has no token left.
    """
    if (log_probs.amax(dim=-1).isneginf() & unfinished).any():
        raise UserError(NOTHING_LEFT)


def penalize_repetition(
    log_probs: Float[Tensor, "R V"], new_ids: Int[Tensor, "R T"], penalty: float
) -> Float[Tensor, "R V"]:
    """Multiply the log-probability of each token that a row already has by `penalty`, once per token.

    CTRL multiplies logits. A constant that is added to all logits changes no probability, but it changes the sign of
    some logits and so the result. So log-probabilities are used here.
    """
    return log_probs.scatter(1, new_ids, log_probs.gather(1, new_ids) * penalty)


def without_end(log_probs: Float[Tensor, "R V"], eos_id: int) -> Float[Tensor, "R V"]:
    """Rule out the end token."""
    return log_probs.index_fill(1, torch.tensor([eos_id], device=log_probs.device), -torch.inf)


def without_repeated_ngrams(
    log_probs: Float[Tensor, "R V"], new_ids: Int[Tensor, "R T"], n: int
) -> Float[Tensor, "R V"]:
    """Rule out every token that would repeat a sequence of n tokens of its row."""
    if new_ids.shape[1] < n:
        return log_probs
    ngrams = new_ids.unfold(1, n, 1)  # R, T - n + 1, n
    last = new_ids[:, new_ids.shape[1] - n + 1 :]  # the n - 1 tokens that a new one would follow
    repeated = (ngrams[..., :-1] == last[:, None]).all(dim=-1)
    rows, starts = repeated.nonzero(as_tuple=True)
    log_probs = log_probs.clone()
    log_probs[rows, ngrams[rows, starts, -1]] = -torch.inf
    return log_probs


# --- Sampling

NUCLEUS_SEARCHES = (128, 1024)
"""The nucleus is first searched among this many of the likeliest tokens, and then among all."""


def draw(
    log_probs: Float[Tensor, "R V"], uniforms: Float[Tensor, " R"], options: GenerationOptions
) -> Int[Tensor, " R"]:
    """Sample one token for each row. `uniforms`: one random number in [0, 1) for each row, on the CPU."""
    assert options.temperature is not None
    logits, ids = (log_probs, None) if options.top_k is None else largest(log_probs, options.top_k)
    logits = logits / options.temperature
    if options.top_p is not None:
        logits, among = keep_top_p(logits, options.top_p)
        ids = among if ids is None else ids.gather(1, among)
    if options.min_p is not None:
        logits = keep_min_p(logits, options.min_p)
    drawn = inverse_cdf(logits, uniforms)
    return drawn if ids is None else ids.gather(1, drawn[:, None])[:, 0]


def keep_top_p(logits: Float[Tensor, "R V"], p: float) -> tuple[Float[Tensor, "R K"], Int[Tensor, "R K"]]:
    """The logits and ids of the smallest set of tokens whose probabilities sum to at least p, likeliest first.

    Rows that keep fewer tokens than others are filled up with logits of -inf.
    """
    total = logits.logsumexp(dim=-1, keepdim=True)
    for num_searched in (
        *NUCLEUS_SEARCHES,
        logits.shape[1],
    ):  # sorting a large vocabulary would take longer than the model
        kept, ids = largest(logits, num_searched)
        probs = (kept - total).exp()
        before = probs.cumsum(dim=-1) - probs
        if (before[:, -1] >= p).all():
            break
    is_out = before >= p
    is_out[:, 0] = False  # the likeliest stays, even where p is so small that it is 0 in this precision
    return kept.masked_fill(is_out, -math.inf), ids


def keep_min_p(logits: Float[Tensor, "R V"], p: float) -> Float[Tensor, "R V"]:
    """Rule out tokens whose probability is less than p times that of the likeliest token."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), -math.inf)


def inverse_cdf(logits: Float[Tensor, "R V"], uniforms: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """The first token at which the cumulative probability exceeds the uniform number of its row."""
    probs = logits.softmax(dim=-1)
    if probs.device.type == "mps":  # it has no fp64
        probs = probs.cpu()
    cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
    sought = uniforms.to(cumulative.device)[:, None] * cumulative[:, -1:]
    passed = torch.searchsorted(cumulative, sought, right=True)[:, 0]
    return passed.clamp(max=logits.shape[1] - 1).to(logits.device)


def uniform_draws(seed: int, keys: Sequence[object], num_draws: int, length: int) -> Float[Tensor, "R length"]:
    """`num_draws` rows of random numbers in [0, 1) for each key, in fp64 on the CPU.

    A row depends only on the seed, its key and the number of the draw.
    """
    rows = []
    for key in keys:
        for i in range(num_draws):
            digest = hashlib.sha256(f"{seed}:{key}:{i}".encode("utf-8", "surrogateescape")).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
            rows.append(torch.rand(length, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


# --- The loop

MAX_KEPT = 0.75
"""Images whose captions have all ended leave the batch when at most this share of the batch is unfinished. That copies
the caches of the images that stay. One or two steps with fewer rows make up for the copy."""


class CaptionsInProgress:
    """The tokens of all captions so far, including the captions whose row has left the batch."""

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
    unfinished = ~captions.ended.unflatten(0, (-1, num_captions)).all(dim=1)  # B
    if unfinished.sum() > MAX_KEPT * len(unfinished):
        return next_ids
    stay = unfinished.repeat_interleave(num_captions)
    decoder.keep(unfinished.nonzero()[:, 0], stay.nonzero()[:, 0])
    captions.running, captions.ended = captions.running[stay], captions.ended[stay]
    return next_ids[stay]
