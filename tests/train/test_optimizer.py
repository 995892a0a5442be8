"""Which parameter is updated how: decay, freezing, clipping and the schedule, seen from outside."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from grr_coca.batch import Batch
from grr_coca.config import CoCaConfig
from grr_coca.errors import UserError
from grr_coca.model import CoCa, build
from grr_coca.train.optimizer import Optimizers, freeze, lr_factor, parameter_groups
from grr_coca.train.recipe import LossRecipe, OptimizerRecipe, ScheduleRecipe
from support import ALONE, compute_losses

CONSTANT = ScheduleRecipe(steps=10, warmup_steps=0, final_lr_ratio=1.0)


def _copy(model: CoCa) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _linear_weights(model: CoCa) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _step_with_gradients_of_zero(model: CoCa, recipe: OptimizerRecipe) -> None:
    optimizers = Optimizers(model, recipe, CONSTANT)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.update(0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("preset", ["grr_coca", "coca"])
def test_decay_is_for_matrices_alone(tiny_config: Callable[..., CoCaConfig], preset: str, name: str) -> None:
    """Without gradients, decay is all that is left of a step."""
    model = build(tiny_config(preset))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    before = _copy(model)
    _step_with_gradients_of_zero(model, OptimizerRecipe(name=name, lr=0.1, weight_decay=0.5))
    matrices = _linear_weights(model)
    assert len(matrices) > 20
    for key, parameter in model.named_parameters():
        expected = before[key] * (1 - 0.1 * 0.5) if key in matrices else before[key]
        torch.testing.assert_close(parameter.detach(), expected, msg=f"{key} is decayed wrongly")
    assert "logit_scale" not in matrices


@pytest.mark.parametrize("frozen", [(), ("image_encoder",), ("image_backbone", "multimodal_decoder")], ids=str)
@pytest.mark.parametrize("preset", ["grr_coca", "baseline_coca", "coca"])
def test_every_trainable_parameter_is_in_exactly_one_group(
    tiny_config: Callable[..., CoCaConfig], preset: str, frozen: tuple[str, ...]
) -> None:
    model = build(tiny_config(preset))
    freeze(model, frozen)
    groups = parameter_groups(model)
    grouped = [id(parameter) for group in groups for parameter in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_hidden_matrices_are_those_between_the_patches_and_the_head(tiny_config: Callable[..., CoCaConfig]) -> None:
    model = build(tiny_config())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hidden, outer, rest = ({names[id(parameter)] for parameter in group} for group in parameter_groups(model))
    assert outer == {"image_encoder.patch_embed.weight", "multimodal_decoder.lm_head.weight"}
    assert hidden == _linear_weights(model) - outer
    assert rest >= {
        "logit_scale",
        "text_decoder.tok_embeddings.weight",
        "text_decoder.cls_embedding",
        "captioning_pooler.queries",
        "image_encoder.patch_embed.bias",
        "image_encoder.norm.weight",
    }


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_frozen_image_encoder_keeps_its_embeddings_through_training(
    tiny_config: Callable[..., CoCaConfig], make_batch: Callable[..., Batch], name: str
) -> None:
    config = tiny_config()
    model, batch = build(config), make_batch(config)
    freeze(model, ["image_encoder"])
    with torch.no_grad():
        before = model.encode_image(batch.images)
    optimizers = Optimizers(model, OptimizerRecipe(name=name, lr=0.01, weight_decay=0.5), CONSTANT)
    text_before = model.text_decoder.tok_embeddings.weight.detach().clone()
    for step in range(3):
        compute_losses(model, batch, LossRecipe()).coca.backward()
        optimizers.update(step)
    with torch.no_grad():
        after = model.encode_image(batch.images)
    assert torch.equal(before.embedding, after.embedding)
    assert torch.equal(before.tokens, after.tokens)
    assert not torch.equal(text_before, model.text_decoder.tok_embeddings.weight)


def test_freezing_everything_is_an_error(tiny_config: Callable[..., CoCaConfig]) -> None:
    with pytest.raises(UserError, match="image_encoder, text_decoder, multimodal_decoder: nothing is left to train"):
        freeze(build(tiny_config()), ["image_encoder", "text_decoder", "multimodal_decoder"])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_moves_every_parameter_and_clears_the_gradients(
    tiny_config: Callable[..., CoCaConfig], make_batch: Callable[..., Batch], name: str
) -> None:
    config = tiny_config()
    model = build(config)
    before = _copy(model)
    optimizers = Optimizers(model, OptimizerRecipe(name=name), CONSTANT)
    compute_losses(model, make_batch(config), LossRecipe()).coca.backward()
    optimizers.update(0)
    for key, parameter in model.named_parameters():
        assert not torch.equal(before[key], parameter), f"{key} did not move"
        assert parameter.grad is None


def test_gradients_are_clipped_and_their_norm_is_that_before(
    tiny_config: Callable[..., CoCaConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(tiny_config())
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 3.0)
    seen: list[float] = []

    def record(self: torch.optim.AdamW) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        seen.append(math.sqrt(sum(grad.double().square().sum().item() for grad in grads)))

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    optimizers = Optimizers(model, OptimizerRecipe(lr=0.1, clip_norm=2.0), CONSTANT)
    grad_norm = optimizers.clip(ALONE)
    optimizers.update(0)
    assert grad_norm.item() == pytest.approx(3.0 * math.sqrt(sum(p.numel() for p in parameters)), rel=1e-4)
    assert seen == pytest.approx([2.0], rel=1e-4)


# --- Schedule ---


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    schedule = ScheduleRecipe(steps=100, warmup_steps=4)
    assert [lr_factor(step, schedule) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_after_warm_up_a_cosine_leads_to_the_final_ratio() -> None:
    schedule = ScheduleRecipe(steps=104, warmup_steps=4, final_lr_ratio=0.1)
    factors = [lr_factor(step, schedule) for step in range(4, 104)]
    assert factors == sorted(factors, reverse=True)
    assert lr_factor(54, schedule) == pytest.approx(0.55, abs=0.01)
    assert factors[-1] == pytest.approx(0.1, abs=0.001)
    assert lr_factor(104, schedule) == lr_factor(1000, schedule) == pytest.approx(0.1)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert lr_factor(0, ScheduleRecipe(steps=10, warmup_steps=0)) == 1.0


def test_a_run_shorter_than_its_warm_up_never_passes_the_peak() -> None:
    schedule = ScheduleRecipe(steps=3, warmup_steps=6)
    assert [lr_factor(step, schedule) for step in range(3)] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert lr_factor(6, schedule) == 1.0


def test_the_learning_rate_of_a_step_follows_the_schedule(tiny_config: Callable[..., CoCaConfig]) -> None:
    model = build(tiny_config())
    schedule = ScheduleRecipe(steps=10, warmup_steps=2)
    optimizers = Optimizers(model, OptimizerRecipe(lr=0.2), schedule)
    for step in (0, 1, 6):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        assert optimizers.learning_rate(step) == pytest.approx(0.2 * lr_factor(step, schedule))
        optimizers.update(step)
        assert optimizers.optimizers[0].param_groups[0]["lr"] == optimizers.learning_rate(step)
