"""Measures have the values that the evaluation reports, and resample whole images."""

import math
from dataclasses import replace

import pytest
import torch
from support import ALONE, PairsInMemory, real_pairs, tiny_recipe, write_shard

from grr_coca.common.errors import UserError
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.checkpoint_metrics import loss_measures, measure_checkpoint
from grr_coca.evaluate.split import Scaling, aggregate, concatenate, pair_results, require_pairs
from grr_coca.evaluate.tasks import measure_retrieval
from grr_coca.model.losses import LossWeights
from grr_coca.train.setup import new_checkpoint

NUM_PAIRS = 22


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return write_shard(tmp_path_factory.mktemp("measures") / "pairs.tar", real_pairs(NUM_PAIRS))


@pytest.fixture(scope="module")
def checkpoint(shard):
    return new_checkpoint(tiny_recipe(shard), ALONE)


@pytest.fixture(scope="module")
def results(checkpoint, shard):
    return pair_results(checkpoint, open_source(str(shard)), 8)


def test_every_measure_has_the_value_of_the_evaluation(checkpoint, shard):
    measured = measure_checkpoint(checkpoint, open_source(str(shard)), 8, LossWeights())
    flat = measured.evaluation.flat()
    assert len(measured.measures) == 9
    for name, measure in measured.measures.items():
        assert measure.value() == pytest.approx(flat[name], rel=1e-5), name
        interval = measure.interval()
        assert interval.low <= interval.value <= interval.high, (name, interval)


class Asked(PairsInMemory):
    """Pairs that count how often captions are asked for without their image."""

    asked = 0

    def captions(self, index):
        self.asked += 1
        return super().captions(index)


def test_pairs_with_one_caption_are_unchanged(checkpoint):
    pairs = Asked(real_pairs(10))
    pair_results(checkpoint, pairs, 8)
    assert pairs.asked == 0, "a run validates on the same pairs many times"


def test_each_caption_of_an_image_counts_in_every_measure(checkpoint):
    pairs = PairsInMemory([replace(pair, more_captions=("a drawing", "a sign")) for pair in real_pairs(4)])
    assert measure_checkpoint(checkpoint, pairs, 12, LossWeights()).evaluation.num_pairs == 12
    retrieval = measure_retrieval(checkpoint, pairs, 8, "own")
    assert (retrieval.depends_on["images"], retrieval.depends_on["captions"]) == (4, 12)


def test_empty_input_raises(checkpoint):
    with pytest.raises(UserError, match="the split is empty: no image to search"):
        measure_retrieval(checkpoint, PairsInMemory([]), 8, "own")
    with pytest.raises(UserError, match="evaluation batch size must be at least 1, got 0"):
        require_pairs(PairsInMemory(real_pairs(4)), 0)


def test_the_chance_counts_the_captions_of_each_image(checkpoint):
    pairs = [replace(pair, more_captions=("a drawing",) * 9 if i < 2 else ()) for i, pair in enumerate(real_pairs(4))]
    found = measure_retrieval(checkpoint, PairsInMemory(pairs), 8, "own").plain
    assert found["image_to_text/chance/R@1"] == pytest.approx((10 / 22 + 1 / 22) / 2)
    missed = [math.comb(wrong, 5) / math.comb(22, 5) for wrong in (12, 21)]
    assert found["image_to_text/chance/R@5"] == pytest.approx(1 - sum(missed) / 2)
    assert found["text_to_image/chance/R@1"] == pytest.approx(1 / 4)


def test_pairs_of_one_image_are_drawn_together(results):
    scale = Scaling(torch.tensor(2.0))
    together = replace(results, embeddings=replace(results.embeddings, image_ids=torch.arange(NUM_PAIRS) // 11))
    measures = loss_measures(together, scale, 8, LossWeights())
    assert len(measures["perplexity"].statistics) == 2
    assert measures["perplexity"].value() == pytest.approx(
        loss_measures(results, scale, 8, LossWeights())["perplexity"].value()
    )


def test_parts_of_a_split_joined_give_the_numbers_of_the_whole(checkpoint, shard, results):
    source = open_source(str(shard))
    whole = aggregate(results, Scaling(torch.tensor(2.0)), 8, LossWeights())
    e = results.embeddings

    def part(rows):
        embeddings = replace(
            e, image=e.image[rows], text=e.text[rows], caption_ids=e.caption_ids[rows], image_ids=e.image_ids[rows]
        )
        return replace(results, embeddings=embeddings, nll=results.nll[rows], num_tokens=results.num_tokens[rows])

    parts = [part(slice(0, 5)), part(slice(5, NUM_PAIRS))]
    assert aggregate(concatenate(parts), Scaling(torch.tensor(2.0)), 8, LossWeights()) == whole
    assert len(source) == whole.num_pairs
