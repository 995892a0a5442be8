"""A caption in token ids, the result of decoding."""

from typing import NamedTuple


class Hypothesis(NamedTuple):
    """The new tokens, with the end token if there is one; the model's own log-probability of each; the score by which
    captions are ranked."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float
