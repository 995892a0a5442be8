"""Rules for the next token, as pure functions of log-probabilities.

Shapes: R rows of captions, T new tokens so far, V vocabulary. A token that is ruled out has log-probability -inf.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grr_coca.errors import UserError
from grr_coca.generate.options import GenerationOptions

NOT_NUMBERS = "what the model computes are not numbers (NaN): its weights are damaged, or its training diverged"
NOTHING_LEFT = "the rules leave no token to go on with: lower min_length, or raise no_repeat_ngram or set it to 0"


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


def require_a_choice(log_probs: Float[Tensor, "R V"], going_on: Bool[Tensor, " R"]) -> None:
    """Make sure that the rules leave at least one token for every caption that has not ended.

    Raises:
        UserError: a caption has no token left.
    """
    if (log_probs.amax(dim=-1).isneginf() & going_on).any():
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
