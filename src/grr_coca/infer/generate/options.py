"""Decoding options. All lengths are numbers of new tokens and do not include the prompt."""

from dataclasses import dataclass, fields
from numbers import Integral, Real

from grr_coca.common.errors import UserError

_ONLY_SAMPLING = ("top_k", "top_p", "min_p")
_MIN = {"max_length": 1, "min_length": 0, "top_k": 1, "num_beams": 1, "no_repeat_ngram": 0, "num_captions": 1}
_WITHIN = {"temperature": (1e-6, 1e6), "length_penalty": (-10, 10), "repetition_penalty": (1e-6, 1e6)}
"""Ranges of valid values. Outside these ranges, scores overflow in fp32, or all become equal."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Decoding options: greedy by default, sampling with a `temperature`, and beam search with `num_beams`.

    The rules (`min_length`, `repetition_penalty`, `no_repeat_ngram`) apply to new tokens, not to the prompt.

    Raises:
        UserError: If a value is out of range, or two options contradict each other.
    """

    max_length: int | None = None
    """Maximum number of new tokens, including the end token. None means as many tokens as fit into the context."""
    min_length: int = 0
    """Minimum number of new tokens before the end token."""
    temperature: float | None = None
    """Temperature: tokens are sampled from the softmax of logits / temperature. None means no sampling."""
    top_k: int | None = None
    """Number of most likely tokens from which to sample."""
    top_p: float | None = None
    """Probability mass for nucleus sampling: sample from the smallest set of tokens whose probabilities sum to at least
    this value (arXiv 1904.09751)."""
    min_p: float | None = None
    """Minimum probability of sampled tokens, relative to the most likely token's probability (arXiv 2407.01082)."""
    num_beams: int = 1
    """Number of most likely captions that beam search continues at each step. 1 means no beam search."""
    length_penalty: float = 1.0
    """Exponent for ranking captions by log-probability / length ** length_penalty. A value above 1 favours long
    captions."""
    repetition_penalty: float = 1.0
    """Factor for the log-probabilities of tokens that the caption already contains (CTRL, arXiv 1909.05858)."""
    no_repeat_ngram: int = 0
    """Length of token sequences that must not occur twice. 0 means no limit."""
    num_captions: int = 1
    """Number of captions per image: either independent samples, or the best captions from beam search."""
    seed: int = 0
    """Seed of the random numbers. The same seed gives the same captions."""

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value is None and default is None:
                continue
            is_whole = name in _MIN or name == "seed"
            if not isinstance(value, Integral if is_whole else Real):
                raise UserError(f"{name} must be a {'whole ' if is_whole else ''}number, got {value!r}")
        for name, minimum in _MIN.items():
            value = getattr(self, name)
            if value is not None and not value >= minimum:
                raise UserError(f"{name} must be at least {minimum}, got {value}")
        for name, (low, high) in _WITHIN.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                hint = "; omit it for the most likely caption" if name == "temperature" else ""
                raise UserError(f"{name} must be from {low:g} to {high:g}, got {value}{hint}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{name} must be above 0 and at most 1, got {value}")
        if self.max_length is not None and self.min_length > self.max_length:
            raise UserError(f"min_length {self.min_length} must be at most max_length {self.max_length}")
        given = [name for name in ("temperature", *_ONLY_SAMPLING) if getattr(self, name) is not None]
        if self.num_beams > 1 and given:
            raise UserError(
                f"num_beams {self.num_beams} cannot be combined with {', '.join(given)}, because beam "
                "search does not sample; omit num_beams, or omit the other options"
            )
        if self.temperature is None and given:
            needs = "needs" if len(given) == 1 else "need"
            raise UserError(f"{', '.join(given)} {needs} sampling; set temperature, e.g. 1.0")
        if self.num_beams == 1 and self.length_penalty != 1:
            raise UserError("length_penalty needs beam search; set num_beams to 2 or more")
        if self.temperature is None and self.num_captions > self.num_beams:
            raise UserError(
                f"num_captions {self.num_captions} must be at most num_beams {self.num_beams}; "
                "raise num_beams, or set temperature to sample captions"
            )


_DEFAULTS = {field.name: field.default for field in fields(GenerationOptions)}

GREEDY = GenerationOptions()
