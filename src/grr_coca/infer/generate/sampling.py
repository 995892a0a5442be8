"""Greedy decoding and sampling: how the next token is chosen, and the loop that appends it to every caption.

Each caption of the batch is decoded independently. Beam search takes the rules from here.

Shapes: B images, R rows of captions (the captions of one image are neighbours), T new tokens so far (or at most), P
prompt tokens, N changed log-probabilities, K tokens that are kept.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.shapes import Bool, Float, Int
from grr_coca.infer.engine.base import Decoder, Logits, inverse_cdf
from grr_coca.infer.generate.options import GenerationOptions


class Hypothesis(NamedTuple):
    """A caption as token ids, the result of decoding.

    `token_ids`: the new tokens, with the end token if there is one. `log_probs`: the model's own log-probability of
    each. `score`: captions are ranked by it."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float


# --- Rules for the next token

NAN_RESULTS = "the model computes NaN: its weights are damaged, or its training diverged"
NOTHING_LEFT = "the rules leave no token to continue with: lower min_length, or raise no_repeat_ngram or set it to 0"


def require_numbers(values: Float[np.ndarray, "*x"]) -> Float[np.ndarray, "*x"]:
    """Return embeddings or log-probabilities unchanged.

    Raises:
        UserError: one of them is NaN.
    """
    if np.isnan(values).any():
        raise UserError(NAN_RESULTS)
    return values


class _Change(NamedTuple):
    """Log-probabilities that a rule replaces, by row and token id. An id may occur twice in a row."""

    rows: Int[np.ndarray, " N"]
    ids: Int[np.ndarray, " N"]
    log_probs: Float[np.ndarray, " N"]


def apply_rules(logits: Logits, new_ids: Int[np.ndarray, "R T"], options: GenerationOptions, eos_id: int) -> Logits:
    """Apply all rules of the options. If they change nothing, the logits themselves are returned."""
    changes = []
    if options.repetition_penalty != 1:
        changes.append(_penalize_repetition(logits, new_ids, options.repetition_penalty))
    if new_ids.shape[1] < options.min_length:
        changes.append(_rule_out(np.arange(len(new_ids)), np.full(len(new_ids), eos_id)))
    if options.no_repeat_ngram:
        changes.append(_rule_out_repeated_ngrams(new_ids, options.no_repeat_ngram))
    if not any(change.rows.size for change in changes):
        return logits
    rows, ids, log_probs = (np.concatenate(parts)[::-1] for parts in zip(*changes, strict=True))
    _, last = np.unique(rows << 32 | ids, return_index=True)  # the last rule that changes a token decides
    return logits.replaced(rows[last], ids[last], log_probs[last])


def _penalize_repetition(logits: Logits, new_ids: Int[np.ndarray, "R T"], penalty: float) -> _Change:
    """Multiply the log-probability of each token that a row already has by `penalty`, once per token.

    CTRL multiplies logits. A constant that is added to all logits changes no probability, but it changes the sign of
    some logits and so the result. So log-probabilities are used here.
    """
    rows = np.arange(len(new_ids)).repeat(new_ids.shape[1])
    return _Change(rows, new_ids.ravel(), logits.of(new_ids).ravel() * np.float32(penalty))


def _rule_out_repeated_ngrams(new_ids: Int[np.ndarray, "R T"], n: int) -> _Change:
    """Rule out every token that would repeat a sequence of n tokens of its row."""
    if new_ids.shape[1] < n:
        return _rule_out(np.empty(0, np.int64), np.empty(0, np.int64))
    ngrams = np.lib.stride_tricks.sliding_window_view(new_ids, n, axis=1)  # R, T - n + 1, n
    last = new_ids[:, new_ids.shape[1] - n + 1 :]  # the n - 1 tokens that a new one would follow
    rows, starts = (ngrams[..., :-1] == last[:, None]).all(axis=-1).nonzero()
    return _rule_out(rows, ngrams[rows, starts, -1])


def _rule_out(rows: Int[np.ndarray, " N"], ids: Int[np.ndarray, " N"]) -> _Change:
    return _Change(rows, ids, np.full(len(rows), -np.inf, dtype=np.float32))


# --- Sampling

SEARCHES = (128, 1024, 2**31)
"""The tokens that the filters leave are first searched among this many of the likeliest, at last among all: ranking a
large vocabulary would take longer than the model."""


def draw(logits: Logits, uniforms: Float[np.ndarray, " R"], options: GenerationOptions) -> Int[np.ndarray, " R"]:
    """Sample one token for each row. `uniforms`: one random number in [0, 1) for each row."""
    assert options.temperature is not None
    if options.top_k is None and options.top_p is None and options.min_p is None:
        return logits.draw(uniforms, options.temperature)
    total = logits.total(options.temperature) if options.top_k is None and options.top_p is not None else None
    for num_searched in SEARCHES if options.top_k is None else (options.top_k,):
        kept, ids = logits.largest(num_searched)
        kept = kept / options.temperature
        is_out = _filtered(kept, total, options)
        if kept.shape[1] < num_searched or is_out[:, -1].all():
            break
    kept[is_out] = -np.inf
    return np.take_along_axis(ids, inverse_cdf(kept, uniforms)[:, None], axis=1)[:, 0]


def _filtered(
    logits: Float[np.ndarray, "R K"], total: Float[np.ndarray, " R"] | None, options: GenerationOptions
) -> Bool[np.ndarray, "R K"]:
    """Which tokens the filters `top_p` and `min_p` leave out. A token is left out if a likelier one is.

    Args:
        logits: of the likeliest tokens, divided by the temperature, in descending order.
        total: log-sum-exp over all tokens; None: those that are given are all.
        options: with the filters.
    """
    is_out = np.zeros(logits.shape, dtype=bool)
    if options.top_p is not None:
        with np.errstate(invalid="ignore"):  # a row of which every token is ruled out
            probs = np.exp(logits - logits[:, :1], dtype=np.float64)  # relative to the likeliest
            whole = probs.sum(axis=1) if total is None else np.exp(total - logits[:, 0])
        is_out |= probs.cumsum(axis=1) - probs >= options.top_p * whole[:, None]
    if options.min_p is not None:
        is_out |= logits < logits[:, :1] + math.log(options.min_p)
    is_out[:, 0] = False  # the likeliest stays, even where rounding leaves it no share
    return is_out


def uniform_draws(seed: int, keys: Sequence[object], num_draws: int, length: int) -> Float[np.ndarray, "R length"]:
    """`num_draws` rows of random numbers in [0, 1) for each key.

    A row depends only on the seed, its key and the number of the draw.
    """
    rows = []
    for key in keys:
        for i in range(num_draws):
            digest = hashlib.sha256(f"{seed}:{key}:{i}".encode("utf-8", "surrogateescape")).digest()
            rows.append(np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16]))).random(length))
    return np.stack(rows)


# --- The loop

MAX_KEPT = 0.75
"""Images whose captions have all ended leave the batch when at most this share of the batch is unfinished. That copies
the keys and values of the images that stay. One or two steps with fewer rows make up for the copy."""


class CaptionsInProgress:
    """The tokens of all captions so far, including the captions whose row has left the batch."""

    def __init__(self, num_rows: int, max_length: int) -> None:
        self.token_ids = np.zeros((num_rows, max_length), dtype=np.int64)
        self.log_probs = np.zeros((num_rows, max_length), dtype=np.float32)
        self.lengths = np.zeros(num_rows, dtype=np.int64)
        self.running = np.arange(num_rows)
        """Numbers of the captions whose rows are in the batch, ended or not."""
        self.ended = np.zeros(num_rows, dtype=bool)
        """Which captions of the batch have ended."""

    def append(self, next_ids: Int[np.ndarray, " R"], log_probs: Float[np.ndarray, " R"], eos_id: int) -> None:
        """Add a token to every caption in the batch that has not ended."""
        rows = self.running[~self.ended]
        ends = self.lengths[rows]
        self.token_ids[rows, ends] = next_ids[~self.ended]
        self.log_probs[rows, ends] = log_probs[~self.ended]
        self.lengths[rows] += 1
        self.ended |= next_ids == eos_id

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
    decoder: Decoder,
    prompt_ids: Int[np.ndarray, "B P"],
    options: GenerationOptions,
    max_length: int,
    eos_id: int,
    uniforms: Float[np.ndarray, "R T"] | None,
) -> Iterator[CaptionsInProgress]:
    """Append tokens to each caption until all have ended. Gives the captions after each step, always the same object.

    Args:
        decoder: with empty caches.
        prompt_ids: the tokens that the captions of each image begin with.
        options: how to decode.
        max_length: new tokens at most.
        eos_id: the end token.
        uniforms: random numbers in [0, 1) that decide which tokens are sampled; None: take the likeliest token.
    """
    num_captions = options.num_captions
    captions = CaptionsInProgress(len(prompt_ids) * num_captions, max_length)
    logits = decoder.step(prompt_ids)
    if num_captions > 1:
        logits = logits.repeated(num_captions)
        decoder.reorder(np.arange(len(prompt_ids)).repeat(num_captions))
    for step in range(max_length):
        allowed = apply_rules(logits, captions.token_ids[captions.running, :step], options, eos_id)
        if uniforms is None:
            best, ids = allowed.largest(1)
        else:
            ids = draw(allowed, uniforms[captions.running, step], options)[:, None]
            best = allowed.of(ids)
        if (np.isneginf(best[:, 0]) & ~captions.ended).any():
            raise UserError(NOTHING_LEFT)
        log_probs = best if allowed is logits else logits.of(ids)
        captions.append(ids[:, 0], log_probs[:, 0], eos_id)
        yield captions
        if captions.ended.all() or step + 1 == max_length:
            return
        logits = decoder.step(_compact(decoder, captions, ids, num_captions))


def _compact(
    decoder: Decoder, captions: CaptionsInProgress, next_ids: Int[np.ndarray, "R 1"], num_captions: int
) -> Int[np.ndarray, "_ 1"]:
    """Remove the images whose captions have all ended, if there are enough of them. Returns the tokens of the rows that
    stay."""
    unfinished = ~captions.ended.reshape(-1, num_captions).all(axis=1)  # B
    if np.count_nonzero(unfinished) > MAX_KEPT * unfinished.size:
        return next_ids
    stay = unfinished.repeat(num_captions).nonzero()[0]
    decoder.reorder(stay)
    captions.running, captions.ended = captions.running[stay], captions.ended[stay]
    return next_ids[stay]
