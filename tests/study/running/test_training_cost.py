"""What training costs is counted by what is trained on."""

from dataclasses import replace

import pytest
import torch

from grr_coca.data.sources.open import open_source
from grr_coca.study.anatomy import flops_per_pair
from grr_coca.study.running import stage as training_cost
from grr_coca.study.running.stage import caption_lengths, run_flops, step_flops
from grr_coca.train.setup import new_checkpoint
from support import ALONE, real_pairs, tiny_recipe, with_caption, write_shard


def test_a_caption_counts_its_words_and_three_tokens_more(tmp_path):
    pairs = [with_caption(pair, "cat " * count) for pair, count in zip(real_pairs(3), (1, 2, 9), strict=True)]
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", pairs))
    start = new_checkpoint(recipe, ALONE)
    source = open_source(recipe.data.train)
    lengths = [len(start.tokenizer.encode_row(source.caption(i), 1000)) for i in range(3)]
    assert lengths[1] > lengths[0] >= 4
    context = start.config.text_decoder.context_length
    assert caption_lengths(start, source).tolist() == [min(length, context) for length in lengths]


def test_of_a_large_split_some_captions_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(training_cost, "_MAX_CAPTIONS", 3)
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", real_pairs(8)))
    start, source = new_checkpoint(recipe, ALONE), open_source(recipe.data.train)
    context = start.config.text_decoder.context_length
    expected = [len(start.tokenizer.encode_row(source.caption(i), context)) for i in (0, 3, 6)]
    assert caption_lengths(start, source).tolist() == expected


def test_a_run_costs_three_passes_over_each_pair_of_each_step(tmp_path):
    pairs = [with_caption(pair, "cat") for pair in real_pairs(16)]
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", pairs), steps=5)
    recipe = replace(recipe, model=replace(recipe.model, patch_size=4))
    start = new_checkpoint(recipe, ALONE)
    source = open_source(recipe.data.train)
    lengths = caption_lengths(start, source)
    by_hand = 5 * recipe.data.batch_size * 3 * flops_per_pair(start.config, int(lengths[0]))
    assert run_flops(recipe, start, source) == by_hand
    half = replace(recipe, data=replace(recipe.data, patch_dropout=0.5))
    assert step_flops(half, start.config, lengths) < by_hand / 5


def test_captions_of_different_lengths_cost_what_each_of_them_costs(tmp_path):
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", real_pairs(8)))
    config = new_checkpoint(recipe, ALONE).config
    short, long = (step_flops(recipe, config, torch.full((32,), length)) for length in (5, 15))
    both = step_flops(recipe, config, torch.tensor([5, 15] * 16))
    assert both == pytest.approx((short + long) / 2, rel=0.02)
