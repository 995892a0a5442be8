"""Siblings in training: images of one thing from other sets, and what a whole run makes of them."""

from dataclasses import replace

import pytest
from support import ALONE, differing, pretrain, real_pairs, tiny_recipe, weights, with_caption, write_shard

from grr_coca.train.logs import read_metrics
from grr_coca.train.recipe import Recipe
from grr_coca.train.setup import new_checkpoint, training_batches, training_sources


def with_siblings(recipe: Recipe, share: float = 0.5, weight: float = 0.5) -> Recipe:
    return replace(
        recipe, data=replace(recipe.data, siblings=share), losses=replace(recipe.losses, sibling_weight=weight)
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Twelve things, each in two sets."""
    pairs = [
        replace(with_caption(pair, f"thing {number // 2}"), key=f"{'ab'[number % 2]}_{number // 2}")
        for number, pair in enumerate(real_pairs(24))
    ]
    shard = write_shard(tmp_path_factory.mktemp("siblings") / "pairs.tar", pairs)
    return with_siblings(tiny_recipe(shard, steps=4))


@pytest.fixture(scope="module")
def plain(recipe, tmp_path_factory):
    return weights(pretrain(recipe, tmp_path_factory.mktemp("plain") / "run"))


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_batches_have_pairs_of_siblings(recipe, micro_batch_size):
    recipe = replace(recipe, data=replace(recipe.data, micro_batch_size=micro_batch_size))
    start, source = new_checkpoint(recipe, ALONE), training_sources(recipe)[0]
    keys = []
    for micro_batches in training_batches(recipe, start, source, ALONE):
        for batch in micro_batches:
            keys += batch.keys
            assert batch.concept_ids.tolist() == batch.caption_ids.tolist(), "of the first captions, the only ones"
    for one, other in zip(keys[::2], keys[1::2], strict=True):
        assert (one[1:], {one[0], other[0]}) == (other[1:], {"a", "b"})


@pytest.mark.ci
def test_loss_of_siblings_is_logged_and_falls(recipe, tmp_path):
    pretrain(replace(recipe, schedule=replace(recipe.schedule, steps=20)), tmp_path / "run")
    first, *_, last = (row["sibling"] for row in read_metrics(tmp_path / "run", "train"))
    assert last < 0.9 * first
    assert "sibling" not in read_metrics(tmp_path / "run", "val")[0], "it is for training alone"


def test_without_siblings_nothing_of_them_is_trained_or_logged(recipe, plain, tmp_path):
    without = weights(pretrain(with_siblings(recipe, 0.0, 0.0), tmp_path / "run"))
    assert len(differing(plain, without)) > len(without) // 2
    assert "sibling" not in read_metrics(tmp_path / "run", "train")[0]


@pytest.mark.parametrize("keys", [{"share": 0.25}, {"weight": 0.0}])
def test_each_key_changes_the_weights(recipe, plain, tmp_path, keys):
    changed = weights(pretrain(with_siblings(recipe, **keys), tmp_path / "run"))
    assert len(differing(plain, changed)) > len(plain) // 2
