"""Drawing the next token: pure functions on logits, and a source of chance of its own for each caption.

Shapes: R rows of captions, V vocabulary. A token that cannot be drawn has logit -inf.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.generate.options import GenerationOptions


def draw(
    log_probs: Float[Tensor, "R V"], uniforms: Float[Tensor, " R"], options: GenerationOptions
) -> Int[Tensor, " R"]:
    """One token for each row; `uniforms` in [0, 1) decide which."""
    assert options.temperature is not None
    logits = log_probs / options.temperature
    if options.top_k is not None:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p is not None:
        logits = keep_top_p(logits, options.top_p)
    if options.min_p is not None:
        logits = keep_min_p(logits, options.min_p)
    return inverse_cdf(logits, uniforms)


def keep_top_k(logits: Float[Tensor, "R V"], k: int) -> Float[Tensor, "R V"]:
    """Keep the k likeliest tokens, and those that are as likely as the last of them."""
    least = logits.topk(min(k, logits.shape[1])).values[:, -1:]
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Float[Tensor, "R V"], p: float) -> Float[Tensor, "R V"]:
    """Keep the fewest tokens whose probabilities sum to at least p, and those as likely as the last of them."""
    probs = logits.softmax(dim=-1)
    ordered = probs.sort(dim=-1, descending=True).values
    before = ordered.cumsum(dim=-1) - ordered
    least = ordered.masked_fill(before >= p, math.inf).amin(dim=-1, keepdim=True)
    return logits.masked_fill(probs < least, -math.inf)


def keep_min_p(logits: Float[Tensor, "R V"], p: float) -> Float[Tensor, "R V"]:
    """Keep the tokens that are at least p times as likely as the likeliest."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), -math.inf)


def inverse_cdf(logits: Float[Tensor, "R V"], uniforms: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """The token at which the summed probability passes each uniform number."""
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    passed = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return passed.clamp(max=logits.shape[1] - 1)


def uniform_draws(seed: int, keys: Sequence[object], num_draws: int, length: int) -> Float[Tensor, "R length"]:
    """Numbers in [0, 1), fp64, on the CPU: a row for each draw of each key, from the seed, the key and no other row."""
    rows = []
    for key in keys:
        for i in range(num_draws):
            digest = hashlib.sha256(f"{seed}:{key}:{i}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
            rows.append(torch.rand(length, generator=generator, dtype=torch.float64))
    return torch.stack(rows)
