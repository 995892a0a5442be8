"""A running average of the weights. It is often better than the weights, especially while the learning rate is high."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from grr_coca.layers.norm import at_least_fp32
from grr_coca.torch_private import lerp_each
from grr_coca.train.step.sharding import by_kind

NUM_UPDATES = "num_updates"


class Ema:
    """Exponential moving average of a model's trainable parameters, kept in fp32 at least.

    After each step, average ← d · average + (1 - d) · weights. Update n, counted from 0, has
    d = min(decay, (1 + n) / (10 + n)). Because d starts low, the random weights of the beginning soon leave the
    average. It works on plain parameters and on sharded ones (DTensor).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._num_updates = 0
        self._weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._average = {name: at_least_fp32(weight.detach()).clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the present weights to the average. Call it once after every step of the optimizer."""
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        weights = (at_least_fp32(weight.detach()) for weight in self._weights.values())
        for average, weight in zip(by_kind(self._average.values()), by_kind(weights), strict=True):
            lerp_each(average, weight, 1 - decay)
        self._num_updates += 1

    def set(self, name: str, value: Tensor) -> None:
        """Replace the average of one parameter."""
        self._average[name].copy_(value)

    def apply(self) -> None:
        """Replace the weights of the model by their average, permanently."""
        self._copy(self._average, self._weights)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the weights by their average within the context. Afterwards, even after an exception, the weights are
        restored bit for bit."""
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        try:
            self.apply()
            yield
        finally:
            self._copy(own, self._weights)

    def state_dict(self) -> dict[str, Tensor]:
        """The average by the names of the parameters, and the number of updates. All values are tensors."""
        return {**self._average, NUM_UPDATES: torch.tensor(self._num_updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict` of the same model.

        Raises:
            ValueError: the state has other parameters; the message names the first.
        """
        differing = sorted(state.keys() ^ {*self._average, NUM_UPDATES})
        if differing:
            raise ValueError(f"the average is of other parameters: {differing[0]}")
        self._copy(state, self._average)
        self._num_updates = int(state[NUM_UPDATES])

    @staticmethod
    @torch.no_grad()
    def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        for name, tensor in target.items():
            tensor.copy_(source[name])
