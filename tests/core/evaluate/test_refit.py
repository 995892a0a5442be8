"""The refitted temperature is the best there is, found from anywhere."""

import math

import pytest
import torch
import torch.nn.functional as F

from grr_coca.evaluate.checkpoint_metrics import refit_scaling
from grr_coca.evaluate.split import Embeddings, Scaling, split_contrastive_loss
from grr_coca.model.coca import MAX_LOGIT_SCALE

N, BATCH = 64, 16


def embeddings(noise: float) -> Embeddings:
    """Pairs whose texts are their images with noise."""
    generator = torch.Generator().manual_seed(0)
    image, other = (F.normalize(torch.randn(N, 8, generator=generator), dim=-1) for _ in range(2))
    ids = torch.arange(N)
    return Embeddings(image, F.normalize(image + noise * other, dim=-1), ids, ids)


@pytest.mark.parametrize("start", [0.0, 2.0, 4.5])
def test_no_other_temperature_is_better(start):
    pairs = embeddings(1.0)
    fitted = refit_scaling(pairs, Scaling(torch.tensor(start)), BATCH)
    best = split_contrastive_loss(pairs, fitted, BATCH)
    scales = torch.linspace(0.0, MAX_LOGIT_SCALE, 100)
    on_a_grid = min(split_contrastive_loss(pairs, Scaling(scale), BATCH) for scale in scales)
    assert best <= on_a_grid + 1e-6
    assert best == pytest.approx(on_a_grid, abs=1e-2)


def test_temperature_stays_within_the_bound_of_training():
    fitted = refit_scaling(embeddings(0.0), Scaling(torch.tensor(2.0)), BATCH)
    assert fitted.logit_scale.item() == pytest.approx(math.log(100))


def test_refit_corrects_a_worse_temperature():
    pairs = embeddings(1.0)
    first, second = (refit_scaling(pairs, Scaling(torch.tensor(start)), BATCH) for start in (1.0, 4.0))
    assert first.logit_scale.item() == pytest.approx(second.logit_scale.item(), abs=1e-4)


def test_bias_of_a_sigmoid_loss_is_fitted():
    pairs = embeddings(1.0)
    start = Scaling(torch.tensor(2.3), torch.tensor(-10.0))
    fitted = refit_scaling(pairs, start, BATCH)
    best = split_contrastive_loss(pairs, fitted, BATCH)
    assert best < split_contrastive_loss(pairs, start, BATCH)
    for scale, bias in ((0.1, 0.0), (-0.1, 0.0), (0.0, 0.2), (0.0, -0.2)):
        near = Scaling(fitted.logit_scale + scale, fitted.logit_bias + bias)
        assert best <= split_contrastive_loss(pairs, near, BATCH) + 1e-6


def test_bias_suits_a_scale_that_the_bound_holds_back():
    # All embeddings lie close together: the best scale is far beyond the bound, with a bias of its own.
    generator = torch.Generator().manual_seed(0)
    near = F.normalize(torch.randn(N, 8, generator=generator) + 4 * torch.eye(8)[0], dim=-1)
    pairs = Embeddings(near, near, torch.arange(N), torch.arange(N))
    start = Scaling(torch.tensor(2.3), torch.tensor(-10.0))
    fitted = refit_scaling(pairs, start, BATCH)
    assert fitted.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE)
    best = split_contrastive_loss(pairs, fitted, BATCH)
    assert best < split_contrastive_loss(pairs, start, BATCH)
    for bias in (-0.5, 0.5):
        near_by = Scaling(fitted.logit_scale, fitted.logit_bias + bias)
        assert best <= split_contrastive_loss(pairs, near_by, BATCH) + 1e-6
