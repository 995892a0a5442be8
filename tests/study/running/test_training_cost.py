"""What training costs is counted by what is trained on."""

from dataclasses import replace

from grr_coca.data.sources.open import open_source
from grr_coca.study.anatomy import flops_per_pair
from grr_coca.study.running.training_cost import caption_length, run_flops, step_flops
from grr_coca.train.run.setup import new_checkpoint
from support import ALONE, real_pairs, tiny_recipe, with_caption, write_shard


def test_a_caption_counts_its_words_and_three_tokens_more(tmp_path):
    pairs = [with_caption(pair, "cat " * count) for pair, count in zip(real_pairs(3), (1, 2, 9), strict=True)]
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", pairs))
    start = new_checkpoint(recipe, ALONE)
    source = open_source(recipe.data.train)
    lengths = [len(start.tokenizer.encode_row(source.caption(i), 1000)) for i in range(3)]
    assert lengths[1] > lengths[0] >= 4
    assert caption_length(start, source) == round(
        sum(min(n, start.config.text_decoder.context_length) for n in lengths) / 3
    )


def test_a_run_costs_three_passes_over_each_pair_of_each_step(tmp_path):
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", real_pairs(8)), steps=5)
    recipe = replace(recipe, model=replace(recipe.model, patch_size=4))
    start = new_checkpoint(recipe, ALONE)
    source = open_source(recipe.data.train)
    length = caption_length(start, source)
    by_hand = 5 * recipe.data.batch_size * 3 * flops_per_pair(start.config, length)
    assert run_flops(recipe, start, source) == by_hand
    half = replace(recipe, data=replace(recipe.data, patch_dropout=0.5))
    assert step_flops(half, start.config, length) < by_hand / 5
