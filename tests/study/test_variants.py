"""Variants differ from their preset in what they are named after, and are what their sources say."""

import pytest
import torch

from grr_coca.common.errors import UserError
from grr_coca.infer.fast.model_copy import fast_copy
from grr_coca.model.build import build
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.layers.layout import PLAIN
from grr_coca.model.presets import get_preset
from grr_coca.study.plan import Plan, read_plan
from grr_coca.study.running.agenda import Agenda, StudyPart
from grr_coca.study.running.stage import run_stage
from grr_coca.study.variants import _first_frequencies, change_of
from support import CPU

PRESETS = {"input_rope": "grr_coca", "mixed_rope": "baseline_rms_geglu", "learned_positions": "grr_coca"}
ADDED = {
    "input_rope": set(),
    "mixed_rope": {f"image_encoder.blocks.{i}.attn.rotary.frequencies" for i in range(4)},
    "learned_positions": {"image_encoder.position.embedding"},
}


def models(variant: str, seed: int = 0):
    """The model of the preset, and the variant that is made of another one like it."""
    config = get_preset(PRESETS[variant], "tiny")
    plain, changed = build(config, seed), build(config, seed)
    change_of(variant, seed)(changed, config)
    return plain.eval(), changed.eval(), config


@pytest.mark.parametrize("variant", PRESETS)
def test_a_variant_shares_all_other_weights_with_its_preset(variant):
    plain, changed, _ = models(variant)
    ours, theirs = plain.state_dict(), changed.state_dict()
    assert theirs.keys() - ours.keys() == ADDED[variant]
    assert ours.keys() <= theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("variant", PRESETS)
def test_a_variant_computes_something_else_and_its_fast_copy_the_same(variant):
    plain, changed, config = models(variant)
    side = config.image_encoder.image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = plain.image_encoder(images), changed.image_encoder(images)
        fast = fast_copy(changed).image_encoder(images)
        kept = torch.tensor([[0, 5, 9], [2, 3, 15]])
        assert changed.image_encoder(images, kept).shape == (2, 3, theirs.shape[-1])
    assert not torch.allclose(ours, theirs, atol=1e-3)
    assert torch.allclose(theirs, fast, atol=1e-5)


def test_input_rope_rotates_what_queries_and_keys_are_projected_from():
    plain, changed, _ = models("input_rope")
    x = torch.randn(2, 16, 128, generator=torch.Generator().manual_seed(0))
    attn, ours = changed.image_encoder.blocks[0].attn, plain.image_encoder.blocks[0].attn
    width, heads = 128, 4
    with torch.inference_mode():
        rotated = ours.rotary(x.unflatten(-1, (1, heads, -1)), PLAIN.positions).flatten(2)
        q, k, v = (
            (tokens @ weight.T).unflatten(-1, (heads, -1)).transpose(1, 2)
            for tokens, weight in zip((rotated, rotated, x), ours.qkv_proj.weight.split(width), strict=True)
        )
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        assert torch.allclose(attn(x, PLAIN), expected @ ours.out_proj.weight.T, atol=1e-5)


def test_mixed_rope_depends_on_the_difference_of_places_alone():
    _, changed, config = models("mixed_rope")
    rotary, grid = changed.image_encoder.blocks[0].attn.rotary, config.image_encoder.grid_size
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 4, 32, generator=generator) for _ in range(2))
    with torch.inference_mode():
        everywhere = [rotary(x.expand(1, grid**2, 1, 4, 32), slice(None))[0, :, 0] for x in (q, k)]  # T H Dh
    dot = torch.einsum("shd,thd->hst", *everywhere).unflatten(2, (grid, grid)).unflatten(1, (grid, grid))
    down_right = dot[:, :-1, :-1, :-1, :-1]
    assert torch.allclose(dot[:, 1:, 1:, 1:, 1:], down_right, atol=1e-4)
    assert not torch.allclose(dot[0, 0, 0], dot[1, 0, 0], atol=1e-3), "each head turns in its own direction"


def test_mixed_rope_turns_by_angles_that_autocast_does_not_round():
    _, changed, config = models("mixed_rope")
    rotary = changed.image_encoder.blocks[0].attn.rotary
    x = torch.randn(1, config.image_encoder.num_patches, 1, 4, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = rotary(x, slice(None))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(rotary(x, slice(None)), expected)


def test_learned_positions_beside_rope_begin_as_those_of_baseline_coca():
    _, changed, _ = models("learned_positions", seed=3)
    baseline = build(get_preset("baseline_coca", "tiny"), 3)
    assert torch.equal(changed.image_encoder.position.embedding, baseline.image_encoder.position.embedding)
    assert all(block.attn.rotary is not None for block in changed.image_encoder.blocks)
    assert not torch.equal(
        models("learned_positions", seed=4)[1].image_encoder.position.embedding,
        baseline.image_encoder.position.embedding,
    )


def test_first_frequencies_come_in_perpendicular_pairs():
    rows, columns = _first_frequencies(4, 32, "seed")
    assert rows.shape == columns.shape == (4, 16)
    length = torch.stack([rows, columns]).norm(dim=0)
    assert torch.allclose(length, (10.0 ** -(torch.arange(0, 32, 4) / 32)).repeat(2).expand(4, -1))
    across = rows[:, :8] * rows[:, 8:] + columns[:, :8] * columns[:, 8:]
    assert torch.allclose(across, torch.zeros(4, 8), atol=1e-6)


def test_a_checkpoint_of_a_variant_is_loaded_with_the_same_change(tmp_path, write_study):
    overrides = {"model.patch_size": 8}
    arm = {"name": "mixed", "preset": "baseline_rms_geglu", "variant": "mixed_rope", "overrides": overrides}
    endpoints = {"primary": ["pretraining/coca_loss"]}
    plan = read_plan(
        write_study(arms=["baseline_coca", arm], seeds=[0], finetune=["health.yaml"], endpoints=endpoints), Plan
    )
    agenda = Agenda(plan, StudyPart(("mixed",)), lambda arm, seed, stage, digest: tmp_path / "runs" / stage, ())
    while tasks := agenda.open_tasks():
        agenda.add(run_stage(tasks[0], CPU, lambda _: None))
    start, tuned = (
        from_pretrained(tmp_path / "runs" / stage, change=change_of("mixed_rope", 0))
        for stage in ("pictograms", "health")
    )
    name = "image_encoder.blocks.0.attn.rotary.frequencies"
    assert not torch.equal(start.model.state_dict()[name], tuned.model.state_dict()[name]), "they are learned"
    with pytest.raises(UserError, match="frequencies"):
        from_pretrained(tmp_path / "runs" / "health")
