"""The running average of the weights, against a sequence worked out by hand."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from grr_coca.model.build import build
from grr_coca.train.optimizer import Ema, freeze


def one_weight(value: float, dtype: torch.dtype = torch.float64) -> nn.Linear:
    linear = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.constant_(linear.weight, value)
    return linear


def average(ema: Ema) -> float:
    return ema.state_dict()["weight"].item()


def follow(ema: Ema, model: nn.Linear, values: list[float]) -> list[float]:
    averages = []
    for value in values:
        nn.init.constant_(model.weight, value)
        ema.update()
        averages.append(average(ema))
    return averages


def test_decay_warms_up_and_stays_at_its_bound():
    model = one_weight(1.0)
    # Decays 1/10, 2/11, 3/12 and then 0.3, where 4/13 would be more.
    a = 0.1 * 1.0 + 0.9 * 2.0
    b = 2 / 11 * a + 9 / 11 * 4.0
    c = 0.25 * b + 0.75 * 3.0
    d = 0.3 * c + 0.7 * 0.0
    assert follow(Ema(model, 0.3), model, [2.0, 4.0, 3.0, 0.0]) == pytest.approx([a, b, c, d], rel=1e-12)


def test_decay_of_zero_is_the_weights_themselves():
    model = one_weight(1.0)
    assert follow(Ema(model, 0.0), model, [2.0, -4.0]) == [2.0, -4.0]


def test_average_of_bf16_weights_is_kept_in_fp32():
    model = one_weight(1.0, torch.bfloat16)
    ema = Ema(model, 0.999)
    ema.load_state_dict({**ema.state_dict(), "num_updates": torch.tensor(20_000)})
    follow(ema, model, [1.0078125])
    assert ema.state_dict()["weight"].dtype == torch.float32
    assert average(ema) == pytest.approx(1.0 + 0.001 * 0.0078125, abs=2e-7)
    with ema.use_average():
        assert model.weight.dtype == torch.bfloat16
    assert model.weight.item() == 1.0078125


def test_applied_swaps_the_average_in_and_the_weights_back(tiny_config):
    model = build(tiny_config())
    ema = Ema(model, 0.9)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    moved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with ema.use_average():
        assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, moved[name]) for name, tensor in model.state_dict().items())
    ema.update()
    assert not torch.equal(ema.state_dict()["logit_scale"], start["logit_scale"])


def test_exception_does_not_leave_the_average_in_the_model():
    model = one_weight(1.0)
    ema = Ema(model, 0.9)
    nn.init.constant_(model.weight, 5.0)
    seen = []

    def fail():
        seen.append(model.weight.item())
        raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"), ema.use_average():
        fail()
    assert seen == [1.0]
    assert model.weight.item() == 5.0
    assert average(ema) == 1.0


def test_run_continues_from_a_state_as_if_it_had_never_stopped():
    values = [2.0, 4.0, 3.0, 0.0, 1.5, 7.0]
    whole, parts = one_weight(1.0), one_weight(1.0)
    expected = follow(Ema(whole, 0.3), whole, values)
    first = Ema(parts, 0.3)
    follow(first, parts, values[:2])
    second = Ema(parts, 0.3)
    second.load_state_dict(first.state_dict())
    assert follow(second, parts, values[2:]) == expected[2:]


def test_state_of_other_parameters_raises_with_a_name():
    ema, state = Ema(one_weight(1.0), 0.9), Ema(nn.Linear(1, 1), 0.9).state_dict()
    with pytest.raises(ValueError, match="bias"):
        ema.load_state_dict(state)


def test_frozen_weights_are_not_kept_twice(tiny_config):
    model = build(tiny_config())
    freeze(model, ["image_encoder"])
    names = Ema(model, 0.9).state_dict().keys()
    assert names == {name for name, p in model.named_parameters() if p.requires_grad} | {"num_updates"}


@pytest.mark.ci
def test_sharded_weights_have_the_same_average(tiny_config, one_process):
    plain, sharded = (build(tiny_config()) for _ in range(2))
    fully_shard(sharded, ignored_params={sharded.logit_scale})  # FSDP2 takes no scalars
    averages = [Ema(model, 0.9) for model in (plain, sharded)]
    for _ in range(3):
        for model, ema in zip((plain, sharded), averages, strict=True):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.5)
            ema.update()
    expected, found = (ema.state_dict() for ema in averages)
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(_whole(found[name]), expected[name]), name
    moved = {name: weight.clone() for name, weight in plain.named_parameters()}
    with averages[1].use_average():
        assert all(torch.equal(_whole(weight), expected[name]) for name, weight in sharded.named_parameters())
    assert all(torch.equal(_whole(weight), moved[name]) for name, weight in sharded.named_parameters())


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
