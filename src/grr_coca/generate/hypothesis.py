"""A caption as token ids: the result of decoding."""

from typing import NamedTuple


class Hypothesis(NamedTuple):
    """`token_ids`: the new tokens, with the end token if there is one. `log_probs`: the model's own log-probability of
    each. `score`: captions are ranked by it."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float
