"""Evaluation mode within a `with` block."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode. Afterwards each part has its mode again, even after an exception."""
    training = [module for module in model.modules() if module.training]
    for module in training:  # none of a model that only answers queries, where setting all would cost a third of one
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
