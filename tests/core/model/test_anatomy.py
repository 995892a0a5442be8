"""Differences between presets, and FLOPs: nothing is forgotten, nothing counted twice."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from model_configs import model_config
from torch.utils.flop_counter import FlopCounterMode

from grr_coca.model.anatomy import FLOP_FORMULAS, flops_of_pairs, flops_per_pair
from grr_coca.model.build import build
from grr_coca.model.presets import SIZES, get_preset

SHALLOW = SIZES["tiny"].with_sizes(image_layers=2, text_layers=1)
"""Every operation is counted in Python."""


@cache
def flops(length: int | None = None, preset: str = "grr_coca") -> int:
    config = get_preset(preset, SHALLOW)
    return flops_per_pair(config) if length is None else flops_per_pair(config, length)


@pytest.mark.ci
def test_full_width_geglu_adds_a_third_of_flops():
    assert flops(5) < flops(20) < flops() < flops(preset="grr_coca_geglu_4x")


@pytest.mark.parametrize("preset", ["baseline_coca", "grr_coca+registers", "grr_coca+stem", "open_clip_coca"])
def test_flops_equal_those_of_a_real_pass(preset):
    config, lengths, kept = model_config(preset, SHALLOW), torch.tensor([4, 9, 12, 5, 7]), torch.arange(6)
    side = config.image_encoder.image_size
    model = build(config)
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        token_ids = torch.zeros(5, 12, dtype=torch.long)
        output = model(torch.zeros(5, 3, side, side), token_ids, lengths, kept.expand(5, -1))
        model.multimodal_decoder.lm_head(output.states)
    assert flops_of_pairs(config, lengths, kept) == counter.get_total_flops()


def test_short_caption_costs_what_it_adds_to_a_large_batch():
    """Its row is not rounded up for itself."""
    config = get_preset("grr_coca", SHALLOW)
    assert flops(5) == pytest.approx(flops_of_pairs(config, torch.full((100,), 5)) / 100, rel=0.01)


@pytest.mark.ci
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
