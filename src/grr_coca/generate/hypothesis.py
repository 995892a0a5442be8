"""A caption in token ids, as the searches hand it on."""

from typing import NamedTuple


class Hypothesis(NamedTuple):
    """New tokens, the end token included if there is one; the model's own log-probability of each; the rank's score."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float
