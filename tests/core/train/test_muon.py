"""Muon against PyTorch's own, and the decision on its precision."""

import timeit

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from grr_coca.train.muon import Muon, orthogonalize, orthogonalize_all
from grr_coca.train.step import faster_muon_precision

CPU = torch.device("cpu")
SHAPES = ((24, 24), (72, 24), (24, 64), (24, 24))


def _matrices(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def _train(optimizer: torch.optim.Optimizer, matrices: list[nn.Parameter], steps: int = 4) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()


def test_bf16_steps_match_pytorch_muon():
    ours, theirs = _matrices(), _matrices()
    settings = {"lr": 0.05, "weight_decay": 0.3}
    _train(Muon([{"params": ours, **settings}], lr=0.05, precision="bf16"), ours)
    _train(torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings), theirs)
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.equal(mine, reference)


def test_precisions_differ_only_by_bf16_rounding():
    ours, theirs = _matrices(), _matrices()
    for matrices, precision in ((ours, "fp32"), (theirs, "bf16")):
        _train(Muon(matrices, lr=0.05, precision=precision), matrices)
    for mine, other in zip(ours, theirs, strict=True):
        difference = (mine - other).norm() / mine.norm()
        assert 0 < difference < 0.02


@pytest.mark.parametrize("shape", [(40, 40), (96, 32), (32, 96), (3, 16, 48)], ids=str)
def test_orthogonalized_singular_values_are_about_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix, torch.float64)
    turned = u.mT @ found @ vh.mT
    values = turned.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(turned, torch.diag_embed(values), atol=1e-9, rtol=0)
    is_large = s / s.norm(dim=-1, keepdim=True) > 0.01
    assert ((values > 0.6) & (values < 1.3))[is_large].all()


def test_zero_gradient_applies_only_decay():
    (matrix,) = _matrices()[:1]
    before = matrix.detach().clone()
    matrix.grad = torch.zeros_like(matrix)
    Muon([{"params": [matrix], "weight_decay": 0.5}], lr=0.1, precision="fp32").step()
    torch.testing.assert_close(matrix.detach(), before * 0.95)


def test_sharded_matrices_take_bitwise_the_steps_of_whole_ones(one_process):
    layers = [nn.Linear(24, 40, bias=False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    fully_shard(layers[1])
    for layer in layers:
        optimizer = Muon(layer.parameters(), lr=0.05, precision="bf16")
        for step in range(3):
            layer(torch.randn(8, 24, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(layers[0].weight, layers[1].weight.full_tensor())


def test_batched_orthogonalization_matches_single_matrices():
    """As on a GPU; on a CPU one after the other is faster."""
    alike = [torch.randn(16, 40, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    together = orthogonalize(torch.stack(alike), torch.float32)
    for one, other in zip(orthogonalize_all(alike, torch.float32), together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("slow", "expected"), [(torch.float32, "bf16"), (torch.bfloat16, "fp32"), (None, "fp32")])
def test_faster_precision_is_chosen_and_fp32_if_equal(monkeypatch, slow, expected):
    def repeat(timed, number: int, repeat: int) -> list[float]:
        return [2.0 if timed.args[0].dtype == slow else 1.0] * repeat

    monkeypatch.setattr(timeit, "repeat", repeat)
    assert faster_muon_precision(_matrices(), CPU) == expected
