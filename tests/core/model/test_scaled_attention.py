"""Attention against a reference in fp64, in the precisions and with the masks that the model has."""

import pytest
import torch
from torch import Tensor

from grr_coca.model.attention import scaled_attention

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}


def _inputs(queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 2, queries, 8), (3, 2, keys, 8), (3, 2, keys, 8))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def _reference(q: Tensor, k: Tensor, v: Tensor, is_seen: Tensor) -> Tensor:
    scores = torch.einsum("bhld,bhsd->bhls", q, k) / 8**0.5
    weights = scores.exp() * is_seen
    return torch.einsum("bhls,bhsd->bhld", weights / weights.sum(-1, keepdim=True), v)


def _value_and_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad((output * weights).sum(), inputs)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["all", "causal", "tensor"])
def test_value_and_gradients_are_the_references(dtype, kind):
    queries, keys = (6, 6) if kind == "causal" else (5, 7)
    inputs = _inputs(queries, keys, dtype)
    is_seen = torch.ones(queries, keys, dtype=torch.bool)
    if kind == "causal":
        is_seen = is_seen.tril()
    if kind == "tensor":
        is_seen = is_seen.tril(2)
    mask = is_seen[None, None] if kind == "tensor" else kind
    ours = _value_and_gradients(scaled_attention(*inputs, mask), inputs)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    for mine, expected in zip(ours, _value_and_gradients(_reference(*exact, is_seen), exact), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_masked_keys_do_not_affect_the_result(dtype):
    q, k, v = _inputs(5, 5, dtype)
    before = scaled_attention(q, k, v, "causal")
    with torch.no_grad():
        k[:, :, 3:] += 100
        v[:, :, 3:] -= 100
    assert torch.equal(scaled_attention(q, k, v, "causal")[:, :, :3], before[:, :, :3])
