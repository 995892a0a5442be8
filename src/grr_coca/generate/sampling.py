"""Sampling of the next token, as pure functions of logits, and separate random numbers for each caption.

Shapes: R rows of captions, K tokens that are kept, V vocabulary. A token that cannot be sampled has logit -inf.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.generate.options import GenerationOptions
from grr_coca.generate.topk import largest

LOOKS = (128, 1024)
"""The nucleus is first searched among this many of the likeliest tokens, and then among all."""


def draw(
    log_probs: Float[Tensor, "R V"], uniforms: Float[Tensor, " R"], options: GenerationOptions
) -> Int[Tensor, " R"]:
    """Sample one token for each row. `uniforms`, in [0, 1) and on the CPU, decide which."""
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
    for num_looked_at in (*LOOKS, logits.shape[1]):  # sorting a large vocabulary would take longer than the model
        kept, ids = largest(logits, num_looked_at)
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
    """Random numbers in [0, 1), in fp64 on the CPU, with one row for each draw of each key. A row depends only on the
    seed, its key and the number of the draw."""
    rows = []
    for key in keys:
        for i in range(num_draws):
            digest = hashlib.sha256(f"{seed}:{key}:{i}".encode("utf-8", "surrogateescape")).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
            rows.append(torch.rand(length, generator=generator, dtype=torch.float64))
    return torch.stack(rows)
