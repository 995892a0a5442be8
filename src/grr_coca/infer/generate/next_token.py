"""Choose the next token of each caption, with its distribution as an array, the rules in the options, and sampling.

Greedy decoding, sampling and beam search all use this module.

Shapes: R rows of captions, T new tokens so far, N changed log-probabilities or ids, K selected tokens, V size of
the vocabulary.
"""

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.shapes import Bool, Float, Int
from grr_coca.infer.engine.base import Logits
from grr_coca.infer.generate.options import GenerationOptions


class ArrayLogits:
    """`Logits` in an array, which is not copied."""

    def __init__(self, logits: Float[np.ndarray, "R V"], normalizer: Float[np.ndarray, "R 1"] | None = None) -> None:
        self._logits = logits
        self._given_normalizer = normalizer

    def largest(self, k: int) -> tuple[Float[np.ndarray, "R K"], Int[np.ndarray, "R K"]]:
        """Return the largest log-probabilities; see `Logits`."""
        ids = self._logits.argmax(axis=1)[:, None] if k == 1 else _largest(self._logits, k)
        return self.of(ids), ids

    def of(self, ids: Int[np.ndarray, "R N"]) -> Float[np.ndarray, "R N"]:
        """Return the log-probabilities of given tokens; see `Logits`."""
        return (self._logits[np.arange(len(ids))[:, None], ids] - self._normalizer).astype(self._logits.dtype)

    def replaced(
        self, rows: Int[np.ndarray, " N"], ids: Int[np.ndarray, " N"], log_probs: Float[np.ndarray, " N"]
    ) -> "ArrayLogits":
        """Replace log-probabilities; see `Logits`."""
        changed = self._logits.copy()
        changed[rows, ids] = log_probs + self._normalizer[rows, 0]
        return ArrayLogits(changed, self._normalizer)

    def repeated(self, count: int) -> "ArrayLogits":
        """Repeat each row; see `Logits`."""
        return ArrayLogits(self._logits.repeat(count, axis=0), self._normalizer.repeat(count, axis=0))

    def total(self, temperature: float) -> Float[np.ndarray, " R"]:
        """Return the total; see `Logits`."""
        return (_log_sum_exp(self._logits / temperature) - self._normalizer / temperature)[:, 0]

    def draw(self, uniforms: Float[np.ndarray, " R"], temperature: float) -> Int[np.ndarray, " R"]:
        """Sample one token per row; see `Logits`."""
        return inverse_cdf(self._logits / temperature, uniforms)

    @cached_property
    def _normalizer(self) -> Float[np.ndarray, "R 1"]:
        """Logarithm of the softmax denominator, which converts logits to log-probabilities.

        It is computed in fp64, because it is nearly as large as the logits from which it is subtracted.
        """
        return _log_sum_exp(self._logits) if self._given_normalizer is None else self._given_normalizer


def inverse_cdf(logits: Float[np.ndarray, "R V"], uniforms: Float[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
    """Return the first column at which the cumulative softmax of the logits exceeds the uniform number of its row."""
    cumulative = _shifted_exp(logits)[0].cumsum(axis=1, dtype=np.float64)
    passed = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(axis=1)
    return np.minimum(passed, logits.shape[1] - 1)


def _log_sum_exp(logits: Float[np.ndarray, "R V"]) -> Float[np.ndarray, "R 1"]:
    exponentials, shift = _shifted_exp(logits)
    with np.errstate(divide="ignore"):  # a row in which every token is ruled out
        return np.log(exponentials.sum(axis=1, keepdims=True).astype(np.float64)) + shift


def _shifted_exp(logits: Float[np.ndarray, "R V"]) -> tuple[Float[np.ndarray, "R V"], Float[np.ndarray, "R 1"]]:
    """Return exp(logits - shift), which cannot overflow, and the shift of each row."""
    shift = logits.max(axis=1, keepdims=True)
    shift[np.isneginf(shift)] = 0  # for a row in which every token is ruled out
    shifted = logits - shift
    return np.exp(shifted, out=shifted), shift


_BLOCK = 64


def _largest(values: Float[np.ndarray, "R V"], k: int) -> Int[np.ndarray, "R K"]:
    """Return the indices of the k largest numbers of each row, in descending order.

    Ranking a vocabulary of 50,000 would take longer than running a small model, so each row is split into n
    blocks, each of which contains every n-th number. The k largest numbers are in the k blocks with the largest maxima,
    or among the numbers that are left after the last block.
    """
    num_rows, num_values = values.shape
    num_blocks = num_values // _BLOCK
    if 2 * k >= num_blocks:
        return _ranked(values, k)
    blocks = values[:, : num_blocks * _BLOCK].reshape(num_rows, _BLOCK, num_blocks)
    best_blocks = blocks.max(axis=1).argpartition(num_blocks - k, axis=1)[:, num_blocks - k :]  # R K
    within = best_blocks[:, None] + np.arange(_BLOCK)[:, None] * num_blocks  # R BLOCK K
    behind = np.broadcast_to(np.arange(num_blocks * _BLOCK, num_values), (num_rows, num_values % _BLOCK))
    candidates = np.concatenate([within.reshape(num_rows, -1), behind], axis=1)
    ranked = _ranked(np.take_along_axis(values, candidates, axis=1), k)
    return np.take_along_axis(candidates, ranked, axis=1)


def _ranked(values: Float[np.ndarray, "R V"], k: int) -> Int[np.ndarray, "R K"]:
    """Return the same result as `_largest`, without splitting rows into blocks."""
    if k < values.shape[1]:
        among = values.argpartition(values.shape[1] - k, axis=1)[:, values.shape[1] - k :]
        order = np.take_along_axis(values, among, axis=1).argsort(axis=1)[:, ::-1]
        return np.take_along_axis(among, order, axis=1)
    return values.argsort(axis=1)[:, ::-1]


class Hypothesis(NamedTuple):
    """A caption in the form of token ids, as returned by decoding.

    Attributes:
        token_ids: The new tokens, including the end token, if any.
        log_probs: The model's own log-probability of each token.
        score: Score for ranking captions.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float


# --- Rules for the next token

NAN_RESULTS = "the model computes NaN: its weights are corrupt, or its training diverged"
NOTHING_LEFT = "the rules leave no token to continue with; lower min_length, or raise no_repeat_ngram or set it to 0"


def require_finite(values: Float[np.ndarray, "*x"]) -> Float[np.ndarray, "*x"]:
    """Check embeddings or log-probabilities, and return them unchanged.

    Raises:
        UserError: If a value is NaN.
    """
    if np.isnan(values).any():
        raise UserError(NAN_RESULTS)
    return values


class _Change(NamedTuple):
    """Log-probabilities that a rule sets, with their rows and token ids. The same row and id can occur more than
    once."""

    rows: Int[np.ndarray, " N"]
    ids: Int[np.ndarray, " N"]
    log_probs: Float[np.ndarray, " N"]


def apply_rules(logits: Logits, new_ids: Int[np.ndarray, "R T"], options: GenerationOptions, eos_id: int) -> Logits:
    """Apply all rules that the options specify. If no rule applies, return the given logits."""
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
    """Multiply by `penalty` the log-probability of each token that its row already contains, once per token.

    CTRL multiplies logits. Adding a constant to all logits changes no probability, but it changes the sign of
    some logits and thus the result, so log-probabilities are used here.
    """
    rows = np.arange(len(new_ids)).repeat(new_ids.shape[1])
    return _Change(rows, new_ids.ravel(), logits.of(new_ids).ravel() * np.float32(penalty))


def _rule_out_repeated_ngrams(new_ids: Int[np.ndarray, "R T"], n: int) -> _Change:
    """Rule out every token that would repeat a sequence of n tokens in its row."""
    if new_ids.shape[1] < n:
        return _rule_out(np.empty(0, np.int64), np.empty(0, np.int64))
    ngrams = np.lib.stride_tricks.sliding_window_view(new_ids, n, axis=1)  # R, T - n + 1, n
    last = new_ids[:, new_ids.shape[1] - n + 1 :]  # the n - 1 tokens that a new token would follow
    rows, starts = (ngrams[..., :-1] == last[:, None]).all(axis=-1).nonzero()
    return _rule_out(rows, ngrams[rows, starts, -1])


def _rule_out(rows: Int[np.ndarray, " N"], ids: Int[np.ndarray, " N"]) -> _Change:
    return _Change(rows, ids, np.full(len(rows), -np.inf, dtype=np.float32))


# --- Sampling

SEARCHES = (128, 1024, 2**31)
"""Numbers of most likely tokens among which the filters search. They are tried in this order until enough tokens are
found, because ranking an entire large vocabulary would take longer than running the model."""


def draw(logits: Logits, uniforms: Float[np.ndarray, " R"], options: GenerationOptions) -> Int[np.ndarray, " R"]:
    """Sample one token for each row. `uniforms` has one random number in [0, 1) per row."""
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
    """Return the tokens that the filters `top_p` and `min_p` exclude, including all tokens after an excluded token.

    Args:
        logits: Logits of the most likely tokens, divided by the temperature, in descending order.
        total: Log-sum-exp over all tokens. None if `logits` contains all tokens.
        options: Options with the filters.
    """
    is_out = np.zeros(logits.shape, dtype=bool)
    if options.top_p is not None:
        with np.errstate(invalid="ignore"):  # a row in which every token is ruled out
            probs = np.exp(logits - logits[:, :1], dtype=np.float64)  # relative to the most likely token
            whole = probs.sum(axis=1) if total is None else np.exp(total - logits[:, 0])
        is_out |= probs.cumsum(axis=1) - probs >= options.top_p * whole[:, None]
    if options.min_p is not None:
        is_out |= logits < logits[:, :1] + math.log(options.min_p)
    is_out[:, 0] = False  # keeps the most likely token even if its probability rounds to 0
    return is_out
