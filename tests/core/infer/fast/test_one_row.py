"""Every kernel for a single row gives the plain product."""

import pytest
import torch

from grr_coca.infer.fast.linear import is_intel, row_product


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("shape", "intel"),
    [(shape, intel) for shape in ((40, 24), (24, 40), (24, 24)) for intel in (True, False)] + [((41, 24), True)],
)
def test_row_times_a_weight(shape, intel):
    weight, row = _random(*shape), _random(1, 1, shape[1], seed=1)
    product = row_product(weight, intel)
    assert product is not None
    found = product(row)
    assert found.shape == (1, 1, shape[0])
    torch.testing.assert_close(found, row @ weight.T, rtol=1e-5, atol=1e-5)


def test_parts_of_unequal_size_have_no_batch_of_products():
    assert row_product(_random(41, 24), False) is None


def test_row_may_have_any_strides():
    weight, row = _random(40, 24), _random(5, 24, seed=1)[::5, None]
    for intel in (True, False):
        product = row_product(weight, intel)
        assert product is not None
        torch.testing.assert_close(product(row), row @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "expected"), [("Intel Xeon", True), ("AMD EPYC", False), (None, False)])
def test_processor_is_identified(name, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name} if name else {}, raising=False)
    assert is_intel() is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not is_intel()
