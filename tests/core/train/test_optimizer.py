"""Which parameter is updated how: decay, freezing, clipping and the schedule, seen from outside."""

import math
import re
from dataclasses import replace

import pytest
import torch
from support import make_trainer
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from grr_coca.common.errors import UserError
from grr_coca.model.build import build
from grr_coca.model.coca import MAX_LOGIT_SCALE, CoCa
from grr_coca.model.losses import batch_loss
from grr_coca.train.optimizer import Optimizers, freeze, layer_depth, lr_factor, parameter_kinds, peak_rates
from grr_coca.train.recipe import OptimizerRecipe, ScheduleRecipe
from grr_coca.train.step import count_tokens

CONSTANT = ScheduleRecipe(steps=10, warmup_steps=0, final_lr_ratio=1.0)


def _copy(model: CoCa) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _linear_weights(model: CoCa) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def clip(optimizers: Optimizers) -> torch.Tensor:
    """Clip as a training step does; returns the norm before."""
    norm = optimizers.gradient_norm()
    optimizers.clip(norm, norm.item())
    return norm


def _step_with_gradients_of_zero(model: CoCa, recipe: OptimizerRecipe) -> None:
    optimizers = Optimizers(model, recipe, CONSTANT)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.update(0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("preset", ["grr_coca", "coca"])
def test_decay_applies_only_to_matrices(tiny_config, preset, name):
    """Without gradients, decay is all that is left of a step."""
    model = build(tiny_config(preset))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    before = _copy(model)
    _step_with_gradients_of_zero(model, OptimizerRecipe(name=name, muon_precision="fp32", lr=0.1, weight_decay=0.5))
    matrices = _linear_weights(model)
    assert len(matrices) > 20
    for key, parameter in model.named_parameters():
        expected = before[key] * (1 - 0.1 * 0.5) if key in matrices else before[key]
        torch.testing.assert_close(parameter.detach(), expected, msg=f"{key} is decayed wrongly")
    assert "logit_scale" not in matrices


@pytest.mark.parametrize("frozen", [(), ("image_encoder",), ("image_backbone", "multimodal_decoder")], ids=str)
@pytest.mark.parametrize("preset", ["grr_coca", "baseline_coca", "coca"])
def test_every_trainable_parameter_is_of_exactly_one_kind(tiny_config, preset, frozen):
    model = build(tiny_config(preset))
    freeze(model, frozen)
    sorted_out = [id(parameter) for kind in parameter_kinds(model) for parameter in kind]
    assert len(sorted_out) == len(set(sorted_out))
    assert set(sorted_out) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("preset", ["grr_coca", "grr_coca+stem"])
def test_hidden_matrices_are_all_but_the_heads(tiny_config, preset):
    """Convolutions among them: Muon takes their kernels as matrices."""
    model = build(tiny_config(preset))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hidden, outer, rest = ({names[id(parameter)] for parameter in kind} for kind in parameter_kinds(model))
    assert outer == {"multimodal_decoder.lm_head.weight"}
    assert hidden == _linear_weights(model) - outer
    convolutions = {f"image_encoder.stem.stages.{i}.conv.weight" for i in range(2)}
    assert convolutions & hidden == (convolutions if preset == "grr_coca+stem" else set())
    assert all(matrix.ndim == 2 for matrix in parameter_kinds(model).hidden)
    assert rest >= {
        "logit_scale",
        "text_decoder.tok_embeddings.weight",
        "text_decoder.cls_embedding",
        "captioning_pooler.queries",
        "image_encoder.patch_embed.bias",
        "image_encoder.norm.weight",
    }


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_image_encoder_keeps_its_embeddings(tiny_config, make_batch, name):
    config = tiny_config()
    model, batch = build(config), make_batch(config)
    freeze(model, ["image_encoder"])
    with torch.no_grad():
        before = model.encode_image(batch.images)
    optimizers = Optimizers(
        model, OptimizerRecipe(name=name, muon_precision="fp32", lr=0.01, weight_decay=0.5), CONSTANT
    )
    text_before = model.text_decoder.tok_embeddings.weight.detach().clone()
    for step in range(3):
        batch_loss(model, batch).total.backward()
        optimizers.update(step)
    with torch.no_grad():
        after = model.encode_image(batch.images)
    assert torch.equal(before.embedding, after.embedding)
    assert torch.equal(before.tokens, after.tokens)
    assert not torch.equal(text_before, model.text_decoder.tok_embeddings.weight)


def test_freezing_everything_is_an_error(tiny_config):
    with pytest.raises(UserError, match="image_encoder, text_decoder, multimodal_decoder: no trainable part remains"):
        freeze(build(tiny_config()), ["image_encoder", "text_decoder", "multimodal_decoder"])


@pytest.mark.parametrize("preset", ["grr_coca", "grr_coca+stem"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_step_moves_every_parameter_and_clears_the_gradients(tiny_config, make_batch, name, preset):
    config = tiny_config(preset)
    model = build(config)
    before = _copy(model)
    optimizers = Optimizers(model, OptimizerRecipe(name=name, muon_precision="fp32"), CONSTANT)
    batch_loss(model, make_batch(config)).total.backward()
    optimizers.update(0)
    for key, parameter in model.named_parameters():
        assert not torch.equal(before[key], parameter), f"{key} did not move"
        assert parameter.grad is None


def test_clipping_returns_the_norm_before_clipping(tiny_config):
    model = build(tiny_config())
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 3.0)
    norm = clip(Optimizers(model, OptimizerRecipe(clip_norm=2.0), CONSTANT))
    assert norm.item() == pytest.approx(3.0 * math.sqrt(sum(p.numel() for p in parameters)), rel=1e-4)
    assert nn.utils.get_total_norm([p.grad for p in parameters]).item() == pytest.approx(2.0, rel=1e-4)


def test_infinite_norm_leaves_gradients_as_they_are(tiny_config):
    model = build(tiny_config())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    norm = clip(Optimizers(model, OptimizerRecipe(clip_norm=math.inf), CONSTANT))
    assert norm > 1e6
    assert all((parameter.grad == 1e6).all() for parameter in model.parameters())


@pytest.mark.parametrize(("before", "after"), [(10.0, MAX_LOGIT_SCALE), (-1.0, 0.0)])
def test_step_keeps_the_temperature_within_its_bounds(tiny_config, make_batch, before, after):
    config = tiny_config()
    model, batch = build(config), make_batch(config)
    with torch.no_grad():
        model.logit_scale.fill_(before)
    trainer = make_trainer(model, Optimizers(model, OptimizerRecipe(), CONSTANT))
    trainer.step([batch], count_tokens([batch]), 0)
    assert model.logit_scale.item() == pytest.approx(after)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moment_decays_match_the_recipe(tiny_config, name):
    recipe = OptimizerRecipe(name=name, muon_precision="fp32", betas=(0.5, 0.6))
    adamw = Optimizers(build(tiny_config()), recipe, CONSTANT).optimizers[0]
    assert isinstance(adamw, torch.optim.AdamW)
    assert {group["betas"] for group in adamw.param_groups} == {(0.5, 0.6)}


# --- Schedule ---


@pytest.mark.parametrize(
    ("steps", "warmup_steps", "factors"),
    [
        (100, 4, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 4: 1}),
        (10, 0, {0: 1}),
        (10, 2, {9: 0.1}),
        (3, 6, {0: 1 / 6, 1: 2 / 6, 2: 3 / 6, 6: 1}),  # shorter than its warm-up
    ],
)
def test_schedule_warms_up_linearly_and_ends_at_the_ratio(steps, warmup_steps, factors):
    schedule = ScheduleRecipe(steps=steps, warmup_steps=warmup_steps, final_lr_ratio=0.1)
    assert {step: lr_factor(step, schedule) for step in factors} == pytest.approx(factors)


def test_after_warm_up_a_cosine_leads_to_the_final_ratio():
    schedule = ScheduleRecipe(steps=104, warmup_steps=4, final_lr_ratio=0.1)
    factors = [lr_factor(step, schedule) for step in range(4, 104)]
    assert factors == sorted(factors, reverse=True)
    assert lr_factor(54, schedule) == pytest.approx(0.55, abs=0.01)
    assert factors[-1] == pytest.approx(0.1, abs=0.001)
    assert lr_factor(104, schedule) == lr_factor(1000, schedule) == pytest.approx(0.1)


def test_rate_is_constant_before_a_late_decay():
    short, long = (ScheduleRecipe(steps, 2, decay_steps=decay) for steps, decay in ((12, 4), (103, 0)))
    assert [lr_factor(step, short) for step in range(8)] == [lr_factor(step, long) for step in range(8)]
    assert lr_factor(102, long) == 1.0
    decay = [lr_factor(step, short) for step in range(7, 12)]
    assert decay == pytest.approx([1.0, 0.854, 0.5, 0.146, 0.0], abs=0.001)


def test_learning_rate_of_a_step_follows_the_schedule(tiny_config):
    model = build(tiny_config())
    schedule = ScheduleRecipe(steps=10, warmup_steps=2)
    optimizers = Optimizers(model, OptimizerRecipe(lr=0.2), schedule)
    for step in (0, 1, 6):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        assert optimizers.learning_rate(step) == pytest.approx(0.2 * lr_factor(step, schedule))
        optimizers.update(step)
        assert optimizers.optimizers[0].param_groups[0]["lr"] == optimizers.learning_rate(step)


# --- Layer-wise decay ---


def test_depth_counts_the_layers_to_the_nearest_head(tiny_config):
    model = build(tiny_config("grr_coca+sigmoid"))  # two layers a stack
    expected = {
        "multimodal_decoder.lm_head.weight": 0,
        "multimodal_decoder.norm.weight": 0,
        "text_proj.weight": 0,
        "image_proj.weight": 0,
        "logit_scale": 0,
        "logit_bias": 0,
        "text_decoder.cls_norm.weight": 0,
        "multimodal_decoder.blocks.1.cross_attn.q_proj.weight": 1,
        "multimodal_decoder.blocks.0.attn.qkv_proj.weight": 2,
        "text_decoder.blocks.1.attn_norm.weight": 1,
        "text_decoder.blocks.0.attn_norm.weight": 2,
        "text_decoder.tok_embeddings.weight": 3,
        "text_decoder.cls_embedding": 3,
        "contrastive_pooler.queries": 1,
        "captioning_pooler.attn.q_proj.weight": 1,
        "captioning_pooler.norm.weight": 1,
        "image_encoder.norm.weight": 1,
        "image_encoder.blocks.1.feed_forward.up_proj.weight": 2,
        "image_encoder.blocks.0.attn.out_proj.weight": 3,
        "image_encoder.patch_embed.weight": 4,
        "image_encoder.patch_embed.bias": 4,
    }
    names = {name for name, _ in model.named_parameters()}
    assert {name: layer_depth(model, name) for name in names & expected.keys()} == expected


@pytest.mark.parametrize(
    ("preset", "parts"),
    [
        ("grr_coca+registers", {"image_encoder.registers"}),
        ("grr_coca+stem", {"image_encoder.stem"}),
        ("coca", {"image_encoder.position", "text_decoder.position"}),
    ],
)
def test_positions_registers_and_stem_have_depth_0(tiny_config, preset, parts):
    model = build(tiny_config(preset))
    names = [name for name, _ in model.named_parameters() if ".".join(name.split(".")[:2]) in parts]
    assert {".".join(name.split(".")[:2]) for name in names} == parts
    for name in names:
        assert layer_depth(model, name) == (4 if name.startswith("image_encoder") else 3)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_layer_decay_scales_the_update_of_a_layer(tiny_config, name):
    """Two models, equal but for the decay, take one step with equal gradients."""
    recipe = OptimizerRecipe(name=name, muon_precision="fp32", lr=0.01)
    model = build(tiny_config())
    moved = {decay: _moves(build(tiny_config()), replace(recipe, layer_decay=decay)) for decay in (1.0, 0.5)}
    for key, step in moved[1.0].items():
        expected = step * 0.5 ** layer_depth(model, key)
        torch.testing.assert_close(moved[0.5][key], expected, rtol=1e-2, atol=1e-6, msg=key)


# --- Learning rates of parts ---


def _moves(model: CoCa, recipe: OptimizerRecipe) -> dict[str, torch.Tensor]:
    """What one step with given gradients adds to each parameter."""
    before = _copy(model)
    optimizers = Optimizers(model, recipe, CONSTANT)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizers.update(0)
    return {key: parameter.detach() - before[key] for key, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_part_rate_equals_a_model_with_that_rate(tiny_config, name):
    recipe = OptimizerRecipe(name=name, muon_precision="fp32", lr=0.01, weight_decay=0.5, layer_decay=0.5)
    rates = {"image_encoder": 0.002, "image_encoder.blocks.1": 0.05, "multimodal_decoder.lm_head.weight": 0.003}
    throughout = {lr: _moves(build(tiny_config()), replace(recipe, lr=lr)) for lr in (0.01, *rates.values())}
    moved = _moves(build(tiny_config()), replace(recipe, learning_rates=rates))
    found = set()
    for key, step in moved.items():
        lr = next((rates[part] for part in sorted(rates, key=len, reverse=True) if key.startswith(part)), 0.01)
        found.add(lr)
        assert torch.equal(step, throughout[lr][key]), key
    assert found == {0.01, *rates.values()}


def test_rate_prefix_matches_complete_names():
    blocks = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(11))
    rates = peak_rates(blocks, {"1": 0.5}, default=0.1)
    assert [number for number in range(11) if rates[f"{number}.weight"] == 0.5] == [1]


def test_rate_0_freezes_a_part_without_gradients(tiny_config, make_batch):
    config = tiny_config("baseline_coca")
    model = build(config)
    before = _copy(model)
    recipe = OptimizerRecipe("muon", muon_precision="fp32", lr=0.01, learning_rates={"image_encoder.position": 0.0})
    freeze(model, [], recipe.learning_rates)
    optimizers = Optimizers(model, recipe, CONSTANT)
    batch_loss(model, make_batch(config)).total.backward()
    assert model.image_encoder.position.embedding.grad is None
    optimizers.update(0)
    kept = {key for key, parameter in model.named_parameters() if torch.equal(parameter, before[key])}
    assert kept == {"image_encoder.position.embedding"}


@pytest.mark.parametrize(
    ("frozen", "rates", "message"),
    [
        ((), {"image_encodr": 0.1}, "has no parameters 'image_encodr'; did you mean 'image_encoder'?"),
        ((), {"image_encoder.position": 0.1}, "has no parameters 'image_encoder.position'; did you mean 'image_"),
        (("image_encoder",), {"image_encoder.blocks": 0.1}, "image_encoder.blocks is frozen by freeze: image_encoder"),
        (
            ("image_encoder", "text_decoder"),
            {"multimodal_decoder": 0.0},
            "freeze image_encoder, text_decoder, multimodal_decoder: no trainable part remains",
        ),
    ],
)
def test_rejects_rates_of_unknown_parts(tiny_config, frozen, rates, message):
    with pytest.raises(UserError, match=re.escape(message)):
        freeze(build(tiny_config()), frozen, rates)


# --- Sharded parameters ---


@pytest.mark.ci
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_sharded_parameters_take_the_same_step(tiny_config, make_batch, one_process, name):
    config = tiny_config()
    batch = make_batch(config)
    recipe = OptimizerRecipe(name=name, muon_precision="fp32", layer_decay=0.7, clip_norm=0.5)
    plain, sharded = build(config), build(config)
    for stack in (sharded.image_encoder, sharded.text_decoder, sharded.multimodal_decoder):
        for block in stack.blocks:
            fully_shard(block)
    fully_shard(sharded, ignored_params={sharded.logit_scale})  # FSDP2 takes no scalars
    norms = []
    for model in (plain, sharded):
        optimizers = Optimizers(model, recipe, CONSTANT)
        batch_loss(model, batch).total.backward()
        norms.append(clip(optimizers))
        optimizers.update(0)
    assert norms[0].item() == pytest.approx(norms[1].item(), rel=1e-5)
    for (key, expected), found in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        assert isinstance(found, DTensor) == (key != "logit_scale")
        whole = found.full_tensor() if isinstance(found, DTensor) else found
        torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-7, msg=key)
