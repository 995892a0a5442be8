"""Every parameter is written, with the spread that the module documents, from the seed and its name alone."""

import math
from dataclasses import replace

import pytest
import torch
from model_configs import model_config
from torch import nn

from grr_coca.model.build import build, build_without_weights, init_weights
from grr_coca.model.coca import CoCa
from grr_coca.model.losses import batch_loss
from grr_coca.model.presets import PRESETS, get_preset


@pytest.fixture(scope="module")
def model() -> CoCa:
    """Of real size, so that a standard deviation can be measured."""
    return build(get_preset("coca", "tiny"), seed=0)


@pytest.mark.parametrize(
    ("preset", "poolers"),
    [
        *((preset, {}) for preset in (*PRESETS, "grr_coca+stem")),
        ("coca", {"num_queries": None}),
        ("coca", {"arrangement": "parallel"}),
    ],
    ids=str,
)
def test_every_parameter_is_initialized(tiny_config, preset, poolers):
    model = build(tiny_config(preset, **poolers), seed=4)
    drawn = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    init_weights(model, seed=4)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, drawn[name]), f"{name} is not what build made of it"


def test_weights_are_not_initialized_by_torch_first(tiny_config, filled_with_nan):
    before = torch.get_rng_state()
    for preset in (*PRESETS, "grr_coca+stem"):
        model = build(tiny_config(preset))
        assert not any(tensor.isnan().any() for tensor in (*model.parameters(), *model.buffers()))
        assert build_without_weights(tiny_config(preset)).image_proj.weight.isnan().all()
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_seed_determines_the_weights(tiny_config):
    torch.manual_seed(1)
    first = build(tiny_config(), seed=7).state_dict()
    torch.manual_seed(2)
    again, other = build(tiny_config(), seed=7).state_dict(), build(tiny_config(), seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if name.endswith("_proj.weight")]
    assert drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_shared_parts_of_grr_and_baseline_start_equal(tiny_config):
    grr, baseline = (build(tiny_config(p), seed=0).state_dict() for p in ("grr_coca", "baseline_coca"))
    shared = [name for name in grr if name in baseline and grr[name].shape == baseline[name].shape]
    assert {name for name in grr if not name.startswith("image_encoder.")} <= set(shared)
    assert "image_encoder.blocks.0.attn.qkv_proj.weight" in shared
    for name in shared:
        assert torch.equal(grr[name], baseline[name]), name


def test_no_two_matrices_start_equal(model):
    matrices = [p for p in model.parameters() if p.dim() == 2 and p.shape == (128, 128)]
    assert len(matrices) > 10
    assert len({tuple(matrix[0].tolist()) for matrix in matrices}) == len(matrices)


def test_initial_deviations_are_as_documented(model):
    expected = {
        "text_decoder.tok_embeddings.weight": 128**-0.5,
        "text_decoder.cls_embedding": 128**-0.5,
        "text_decoder.position.embedding": 0.02,
        "image_encoder.position.embedding": 0.02,
        "image_encoder.patch_embed.bias": 0.02,
        "captioning_pooler.queries": 1.0,
        "contrastive_pooler.queries": 1.0,
    }
    for name, std in expected.items():
        parameter = model.get_parameter(name)
        assert parameter.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * parameter.numel())), name


def test_matrices_keep_the_variance_of_their_input(model):
    branches = {
        "image_encoder": 2 * len(model.image_encoder.blocks),
        "text_decoder": 2 * len(model.text_decoder.blocks) + 3 * len(model.multimodal_decoder.blocks),
    }
    branches["multimodal_decoder"] = branches["text_decoder"]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            ends_branch = ".blocks." in name and name.endswith(("out_proj", "down_proj"))
            num_branches = branches[name.split(".")[0]] if ends_branch else 1
            expected = (module.in_features * num_branches) ** -0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name


class OtherwiseNamed(nn.Module):
    """A feed-forward whose last matrix has another name."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Linear(128, 512)
        self.last = nn.Linear(512, 128)


def test_branch_without_a_named_end_raises():
    model = build(get_preset("coca", "tiny"), seed=0)
    model.multimodal_decoder.blocks[0].feed_forward = OtherwiseNamed()
    with pytest.raises(AssertionError, match="OtherwiseNamed is a residual branch; name its last matrix"):
        init_weights(model, seed=0)


def test_norms_biases_and_temperature_start_neutral(model):
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.endswith("bias") and name != "image_encoder.patch_embed.bias":
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-6)


def test_registers_have_the_documented_deviation():
    config = model_config("grr_coca+registers", "tiny")
    registers = build(config).image_encoder.registers
    assert registers.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * registers.numel()))


def test_sigmoid_starts_with_siglips_temperature_and_bias():
    model = build(model_config("grr_coca+sigmoid", "tiny"))
    assert model.logit_scale.exp().item() == pytest.approx(10.0, rel=1e-6)
    assert model.logit_bias.item() == -10.0
    assert build(get_preset("grr_coca", "tiny")).logit_bias is None


@pytest.mark.parametrize("preset", ["grr_coca+registers", "grr_coca+qk_norm", "grr_coca+sigmoid"])
def test_option_does_not_change_other_weights(preset):
    plain, other = (build(model_config(name, "tiny")).state_dict() for name in ("grr_coca", preset))
    assert len(other) > len(plain)
    changed = {name for name in plain if not torch.equal(plain[name], other[name])}
    assert changed == ({"logit_scale"} if preset == "grr_coca+sigmoid" else set())


def test_convolutions_are_drawn_as_matrices_and_patches_are():
    stem = build(model_config("grr_coca+stem", "tiny")).image_encoder.stem
    for stage in stem.stages:
        weight, bias = stage.conv.weight, stage.conv.bias
        assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=4 / math.sqrt(2 * weight.numel()))
        assert bias.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * bias.numel()))
        assert torch.equal(stage.norm.weight, torch.ones_like(stage.norm.weight))


@pytest.mark.parametrize("preset", ["grr_coca", "coca", "grr_coca+qk_norm", "grr_coca+registers", "grr_coca+stem"])
def test_blank_images_have_gradients_like_others(preset, make_batch):
    """Were their patches zero vectors, each norm would make the gradient a thousand times as large: 1e25 in all."""
    config = model_config(preset, "tiny")
    norms = []
    for scale in (1.0, 0.0):
        model, batch = build(config, seed=0), make_batch(config)
        batch_loss(model, replace(batch, images=batch.images * scale)).total.backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    assert norms[1] < 100 * norms[0]
