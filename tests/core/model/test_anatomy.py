"""What a model is made of: nothing is forgotten, nothing counted twice."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from model_configs import model_config
from torch.utils.flop_counter import FlopCounterMode

from grr_coca.common.dict_to_dataclass import differences
from grr_coca.model.anatomy import (
    UNCOUNTED,
    count_parameters,
    flops_of_pairs,
    flops_per_pair,
    parts,
    share_that_differs,
)
from grr_coca.model.build import build
from grr_coca.model.presets import PRESETS, SIZES, get_preset


def model_of(preset):
    return build(get_preset(preset, "tiny"))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_leaves_of_the_tree_add_up_to_the_whole(preset):
    model = model_of(preset)
    outside = sum(parameter.numel() for name, parameter in model.named_parameters() if is_bare(name))
    leaves = sum(part.num_parameters for part in parts(model) if part.is_leaf)
    assert leaves + outside == count_parameters(model)


def is_bare(name: str) -> bool:
    """A parameter that a container holds itself."""
    return name in ("logit_scale", "logit_bias", "text_decoder.cls_embedding", "image_encoder.registers")


@pytest.mark.parametrize("preset", ["grr_coca", "baseline_coca"])
def test_the_parts_at_the_top_add_up_to_the_whole(preset):
    model = model_of(preset)
    top = [part for part in parts(model) if len(part.path) == 1]
    assert [part.path[0] for part in top] == [name for name, _ in model.named_children()]
    assert sum(part.num_parameters for part in top) + model.logit_scale.numel() == count_parameters(model)


def test_a_stack_of_equal_blocks_is_one_part():
    blocks = next(part for part in parts(model_of("grr_coca")) if part.path == ("image_encoder", "blocks"))
    assert (blocks.kind, blocks.count) == ("Block", 4)
    assert blocks.num_parameters == count_parameters(model_of("grr_coca").image_encoder.blocks)


def test_both_models_differ_in_the_image_encoder_alone():
    found = differences(get_preset("grr_coca", "base"), get_preset("baseline_coca", "base"))
    keys = {key for key, _, _ in found}
    assert keys == {f"image_encoder.transformer.{key}" for key in ("norm", "feed_forward", "position", "hidden_dim")}
    values = {key.rpartition(".")[2]: (first, second) for key, first, second in found}
    assert values["norm"] == ("rms", "layer")
    assert values["feed_forward"] == ("geglu", "gelu")
    assert values["position"] == ("rope_2d", "learned")


def test_equal_configs_do_not_differ():
    config = get_preset("grr_coca", "tiny")
    assert differences(config, replace(config)) == []


def test_a_model_does_not_differ_from_itself():
    assert share_that_differs(model_of("grr_coca"), model_of("grr_coca")) == 0.0


def test_the_share_that_differs_lies_in_the_image_encoder():
    model, baseline = model_of("grr_coca"), model_of("baseline_coca")
    share = share_that_differs(model, baseline)
    assert 0 < share <= count_parameters(model.image_encoder) / count_parameters(model)


SHALLOW = SIZES["tiny"].changed(image_layers=2, text_layers=1)
"""Every operation is counted in Python."""


@cache
def flops(length: int | None = None, preset: str = "grr_coca") -> int:
    config = get_preset(preset, SHALLOW)
    return flops_per_pair(config) if length is None else flops_per_pair(config, length)


def test_flops_grow_with_the_text_and_a_third_with_geglu_at_full_width():
    assert flops(5) < flops(20) < flops() < flops(preset="grr_coca_geglu_4x")


@pytest.mark.parametrize(
    "preset", ["baseline_coca", "grr_coca_plus", "grr_coca+registers", "grr_coca+stem", "open_clip_coca"]
)
def test_flops_are_those_of_a_real_pass(preset):
    config, lengths, kept = model_config(preset, SHALLOW), torch.tensor([4, 9, 12, 5, 7]), torch.arange(6)
    side = config.image_encoder.image_size
    model = build(config)
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        token_ids = torch.zeros(5, 12, dtype=torch.long)
        output = model(torch.zeros(5, 3, side, side), token_ids, lengths, kept.expand(5, -1))
        model.multimodal_decoder.lm_head(output.states)
    assert flops_of_pairs(config, lengths, kept) == counter.get_total_flops()


def test_a_short_caption_costs_what_it_adds_to_a_large_batch():
    """Its row is not rounded up for itself."""
    config = get_preset("grr_coca", SHALLOW)
    assert flops(5) == pytest.approx(flops_of_pairs(config, torch.full((100,), 5)) / 100, rel=0.01)


def test_patches_that_are_dropped_cost_nothing():
    config, lengths = get_preset("grr_coca", SHALLOW), torch.full((16,), 9)
    kept = [flops_of_pairs(config, lengths, torch.arange(count)) for count in (4, 8, 16)]
    assert kept[2] == flops_of_pairs(config, lengths)
    assert kept[0] < kept[1] < kept[2]
    assert kept[1] - kept[0] == pytest.approx((kept[2] - kept[1]) / 2, rel=0.05), "nearly linear in the patches"


def test_flops_of_a_linear_map_are_two_per_weight_and_row():
    small = get_preset("coca", SHALLOW)
    text = replace(small.text_decoder, vocab_size=2 * small.text_decoder.vocab_size)
    more = flops_per_pair(replace(small, text_decoder=text)) - flops(preset="coca")
    rows = small.text_decoder.context_length - 2  # the head predicts nothing after [EOS]
    assert more == 2 * rows * small.text_decoder.transformer.embed_dim * small.text_decoder.vocab_size
