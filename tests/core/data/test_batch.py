"""A batch on its way to the device."""

from dataclasses import fields

import pytest
import torch
from gradient_cases import CASES, make_batch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory


@pytest.mark.parametrize("has_kept_patches", [False, True])
def test_loader_pins_every_tensor_of_a_batch(monkeypatch, has_kept_patches):
    """PyTorch pins the memory of what has a method for it, and leaves everything else as it is."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor, _device=None: tensor + 0)
    case = next(
        case
        for case in CASES.values()
        if (make_batch(case, torch.float32).kept_patches is not None) is has_kept_patches
    )
    batch = make_batch(case, torch.float32)
    pinned = pin_memory(batch)
    for name in (field.name for field in fields(batch)):
        ours, theirs = getattr(batch, name), getattr(pinned, name)
        if isinstance(ours, Tensor):
            assert theirs is not ours, name
            assert torch.equal(theirs, ours), name
        else:
            assert theirs == ours, name
