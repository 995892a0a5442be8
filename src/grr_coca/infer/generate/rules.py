"""Rules for the next token, which exclude tokens or change their log-probabilities, as `GenerationOptions` specifies.

Shapes: R rows of captions, T new tokens so far, N changed log-probabilities.
"""

from typing import NamedTuple

import numpy as np

from grr_coca.common.shapes import Float, Int
from grr_coca.infer.engine.base import Logits
from grr_coca.infer.generate.options import GenerationOptions

NAN_RESULTS = "the model computes NaN: its weights are corrupt, or its training diverged; use another checkpoint"
NOTHING_LEFT = "the rules leave no token to continue with; lower min_length, or raise no_repeat_ngram or set it to 0"


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


class _Change(NamedTuple):
    """Log-probabilities that a rule sets, with their rows and token ids. The same row and id can occur more than
    once."""

    rows: Int[np.ndarray, " N"]
    ids: Int[np.ndarray, " N"]
    log_probs: Float[np.ndarray, " N"]


def apply_rules(logits: Logits, new_ids: Int[np.ndarray, "R T"], options: GenerationOptions, eos_id: int) -> Logits:
    """Return logits changed by all rules that the options specify, or the given logits if no rule applies.

    Args:
        logits: Distribution of the next token of each row. It is not changed.
        new_ids: New tokens of each row so far, without the prompt.
        options: Options with the rules.
        eos_id: Id of the end token.
    """
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
    return logits.with_log_probs(rows[last], ids[last], log_probs[last])


def _penalize_repetition(logits: Logits, new_ids: Int[np.ndarray, "R T"], penalty: float) -> _Change:
    """Multiply by `penalty` the log-probability of each token that its row already contains, once per token.

    CTRL multiplies logits. Adding a constant to all logits changes no probability, but it changes the sign of
    some logits and thus the result, so log-probabilities are used here.
    """
    rows = np.arange(len(new_ids)).repeat(new_ids.shape[1])
    return _Change(rows, new_ids.ravel(), logits.log_probs_of(new_ids).ravel() * np.float32(penalty))


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
