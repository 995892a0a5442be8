"""What `torch_private` expects of PyTorch beyond its public interface: a release that changes it fails here."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grr_coca.common import torch_private

CHANGED = (
    f"PyTorch {torch.__version__} has changed {{}}, which grr_coca/common/torch_private.py calls: see what it is now"
)
SCHEMAS = {
    "mkldnn::_reorder_linear_weight": [("self", "Tensor"), ("batch_size", "Optional[int]")],
    "mkldnn::_linear_pointwise": [
        ("X", "Tensor"),
        ("W", "Tensor"),
        ("B", "Optional[Tensor]"),
        ("attr", "str"),
        ("scalars", "List[Optional[number]]"),
        ("algorithm", "Optional[str]"),
    ],
    "mkldnn::_linear_pointwise.binary": [
        ("X", "Tensor"),
        ("other", "Tensor"),
        ("W", "Tensor"),
        ("B", "Optional[Tensor]"),
        ("attr", "str"),
    ],
    "aten::_foreach_lerp_.Scalar": [("self", "List[Tensor]"), ("tensors1", "List[Tensor]"), ("weight", "number")],
}


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SCHEMAS)
def test_operators_accept_their_arguments(name):
    schemas = {str(schema).split("(")[0]: schema for schema in torch._C._jit_get_all_schemas()}
    assert name in schemas, CHANGED.format(name)
    arguments = [(argument.name, str(argument.type)) for argument in schemas[name].arguments]
    assert arguments == SCHEMAS[name], CHANGED.format(name)


@pytest.mark.parametrize("bias", [None, _random(40, seed=2)])
def test_products_with_a_blocked_weight_are_linear_layers(bias):
    assert torch_private.has_blocked_linear(), CHANGED.format("torch.ops.mkldnn")
    x, weight, factor = _random(3, 5, 24), _random(40, 24, seed=1), _random(3, 5, 40, seed=3)
    blocked, expected = torch_private.block_weight(weight), F.linear(x, weight, bias)
    for found, expected_product in (
        (torch_private.blocked_linear(x, blocked, bias), expected),
        (torch_private.blocked_linear_gelu(x, blocked, bias), F.gelu(expected)),
        (torch_private.blocked_linear_times(x, factor, blocked, bias), factor * expected),
    ):
        torch.testing.assert_close(
            found, expected_product, rtol=1e-5, atol=1e-5, msg=CHANGED.format("mkldnn::_linear_pointwise")
        )


def test_tensors_move_a_share_of_the_way():
    starts, ends = [_random(3), _random(2, 2)], [_random(3, seed=1), _random(2, 2, seed=1)]
    expected = [start + 0.25 * (end - start) for start, end in zip(starts, ends, strict=True)]
    torch_private.lerp_each(starts, ends, 0.25)
    torch.testing.assert_close(starts, expected, msg=CHANGED.format("torch._foreach_lerp_"))


@pytest.mark.ci
def test_compiler_has_the_settings():
    import torch._dynamo
    import torch._functorch.config

    assert isinstance(torch._dynamo.config.recompile_limit, int), CHANGED.format("recompile_limit")
    assert isinstance(torch._functorch.config.activation_memory_budget, float), CHANGED.format(
        "activation_memory_budget"
    )
    with torch._dynamo.config.patch(recompile_limit=5), torch._functorch.config.patch(activation_memory_budget=1.0):
        torch_private.allow_recompiles(7)
        torch_private.allow_recompiles(6)
        torch_private.keep_for_backward(0.5)
        assert torch._dynamo.config.recompile_limit == 7
        assert torch._functorch.config.activation_memory_budget == 0.5


def test_cpu_attention_uses_the_counted_operator():
    q = _random(1, 2, 3, 8)
    with torch.profiler.profile() as profiler:
        F.scaled_dot_product_attention(q, q, q)
    run = {event.key for event in profiler.key_averages()}
    name = str(torch_private.flash_attention_of_cpu()).replace(".", "::", 1)
    assert name in run, CHANGED.format(name)


def test_copy_has_other_children_and_shares_the_rest():
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    copied = torch_private.copy_with_children(module, {"0": module[0], "1": nn.Tanh()})
    assert type(copied) is nn.Sequential, CHANGED.format("nn.Module._modules")
    assert [type(child) for child in copied] == [nn.Linear, nn.Tanh]
    assert copied[0] is module[0]
    assert [type(child) for child in module] == [nn.Linear, nn.ReLU]
    assert list(torch_private.children_of(module)) == ["0", "1"]


def test_copy_calls_only_hooks_registered_before_copying():
    module, called = nn.Sequential(nn.Linear(2, 2)), []
    module[0].register_forward_hook(lambda *_: called.append("before"))
    copied = torch_private.copy_modules(module)
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        getattr(module[0], register)(lambda *_: called.append("after"))
    copied.eval()(torch.zeros(1, 2))
    assert called == ["before"], CHANGED.format("the hooks of nn.Module")
    assert module[0].training
    assert copied[0].weight is module[0].weight


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_seen(register):
    module = nn.Linear(2, 2)
    assert not torch_private.has_hooks(module)
    getattr(module, register)(lambda *_: None)
    assert torch_private.has_hooks(module), CHANGED.format("the hooks of nn.Module")
