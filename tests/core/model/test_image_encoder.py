from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from grr_coca.model.build import build
from grr_coca.model.coca import ImageEncoder
from grr_coca.model.config import CoCaConfig, Stem
from grr_coca.model.losses import batch_loss


@pytest.mark.parametrize("preset", ["grr_coca", "grr_coca_rope_1d", "baseline_coca"])
def test_every_kind_of_position_distinguishes_patches(tiny_config, preset):
    """Without positions, an image with two patches exchanged would give the same embedding."""
    model = build(tiny_config(preset)).eval()
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    exchanged = image.clone()
    exchanged[..., :4, :4], exchanged[..., 4:8, 8:12] = image[..., 4:8, 8:12], image[..., :4, :4]
    with torch.no_grad():
        moved = model.encode_image(image).embedding - model.encode_image(exchanged).embedding
    assert moved.abs().max() > 1e-5


POSITIONS = ["grr_coca", "grr_coca_rope_1d", "baseline_coca"]
STEMS = ["patchify", "convolutional"]


def _encoder(config: CoCaConfig, num_registers: int = 0, stem: Stem = "patchify") -> ImageEncoder:
    config = replace(config, image_encoder=replace(config.image_encoder, num_registers=num_registers, stem=stem))
    return build(config).image_encoder.eval()


def _images(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


# --- Registers ---


@pytest.mark.parametrize("preset", POSITIONS)
def test_registers_are_read_by_the_patches_and_do_not_come_out(tiny_config, preset):
    encoder, images = _encoder(tiny_config(preset), num_registers=3), _images()
    assert encoder.registers.shape == (3, 48)
    before = encoder(images)
    assert before.shape == (2, 16, 48)
    with torch.no_grad():
        encoder.registers[1, 0] += 1
    assert (encoder(images) - before).abs().max() > 1e-4


@pytest.mark.parametrize("preset", POSITIONS)
def test_registers_have_no_position(tiny_config, preset):
    encoder, images = _encoder(tiny_config(preset), num_registers=3), _images()
    before = encoder(images)
    with torch.no_grad():
        encoder.registers.copy_(encoder.registers.flip(0))
    torch.testing.assert_close(encoder(images), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", POSITIONS)
def test_registers_that_nothing_attends_to_change_nothing(tiny_config, preset):
    """Registers whose keys lose every comparison leave the patches as they are without registers."""
    config, images = tiny_config(preset), _images()
    with_registers, without = _encoder(config, num_registers=3), _encoder(config)
    attend = F.scaled_dot_product_attention

    def away_from_registers(q, k, v, attn_mask, is_causal):
        mask = (torch.arange(k.shape[2]) < 16).expand(q.shape[2], -1)
        return attend(q, k, v, attn_mask=mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", away_from_registers)
        torch.testing.assert_close(with_registers(images), without(images), rtol=1e-4, atol=1e-5)


def test_model_without_registers_has_no_register_parameters(tiny_config):
    assert not [name for name in build(tiny_config()).state_dict() if "registers" in name]


# --- Patch dropout ---


def _kept(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("num_registers", [0, 2])
@pytest.mark.parametrize("preset", POSITIONS)
def test_kept_patches_keep_positions_and_ignore_dropped_ones(tiny_config, preset, num_registers, stem):
    """The others are dropped after the stem, so a convolutional one has read pixels of theirs."""
    encoder, images = _encoder(tiny_config(preset), num_registers, stem), _images()
    kept = _kept([1, 4, 9, 15], [0, 2, 3, 8])
    encoded = encoder(images, kept)
    assert encoded.shape == (2, 4, 48)
    attend = F.scaled_dot_product_attention

    def within_kept(q, k, v, attn_mask, is_causal):
        is_kept = torch.zeros(2, k.shape[2], dtype=torch.bool).scatter(1, kept, True)
        is_kept[:, 16:] = True
        return attend(q, k, v, attn_mask=is_kept[:, None, None, :])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", within_kept)
        expected = encoder(images)[torch.arange(2)[:, None], kept]
    torch.testing.assert_close(encoded, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("num_registers", [0, 2])
def test_keeping_all_patches_equals_dropping_none(tiny_config, num_registers, stem):
    encoder, images = _encoder(tiny_config(), num_registers, stem), _images()
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(encoder(images, everything), encoder(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("preset", ["grr_coca", "grr_coca+stem"])
@pytest.mark.parametrize("poolers", [{}, {"num_queries": None}, {"arrangement": "parallel"}], ids=str)
def test_whole_model_trains_on_kept_patches(tiny_config, make_batch, poolers, preset):
    config = tiny_config(preset, **poolers)
    model, batch = build(config), make_batch(config, num_words=(3, 7))
    whole, part, again = (
        batch_loss(model, replace(batch, kept_patches=kept)).total
        for kept in (None, _kept([0, 5, 9], [3, 4, 12]), _kept([0, 5, 9], [3, 4, 12]))
    )
    assert torch.equal(part, again)
    assert not torch.equal(whole, part)
    part.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("preset", ["grr_coca", "grr_coca+stem", "baseline_rope_2d", "baseline_rms", "baseline_coca"])
def test_all_models_add_up_in_fp32_under_autocast(tiny_config, preset):
    """Models that are compared must not be rounded differently."""
    encoder = build(tiny_config(preset)).image_encoder
    seen = []
    for block in encoder.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        encoder(torch.randn(1, 3, 16, 16))
    assert seen == [torch.float32] * len(encoder.blocks)
