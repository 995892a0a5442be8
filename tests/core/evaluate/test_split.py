"""Evaluation of a split: the same numbers however it is read, and none better than they deserve."""

import math
from dataclasses import replace

import pytest
import torch
from support import ALONE, BATCH_SIZE, PairsInMemory, by_caption, real_pairs, tiny_recipe, with_caption, write_shard

from grr_coca.common.errors import UserError
from grr_coca.data.dataset import make_loader
from grr_coca.data.order import EvaluationOrder
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import every_caption
from grr_coca.evaluate.checkpoint_metrics import evaluate_checkpoint
from grr_coca.evaluate.split import (
    Embeddings,
    Scaling,
    aggregate,
    as_dataset,
    concatenate,
    run_pairs,
    scaling_of,
    split_contrastive_loss,
)
from grr_coca.model.losses import LossWeights, contrastive_loss
from grr_coca.train.setup import new_checkpoint

NUM_PAIRS = 20
SCALE = torch.tensor(math.log(10.0))
SCALING = Scaling(SCALE)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return write_shard(tmp_path_factory.mktemp("split") / "pairs.tar", real_pairs(NUM_PAIRS))


@pytest.fixture
def checkpoint(shard):
    """A fresh model: what it says is noise, and differs from pair to pair."""
    return new_checkpoint(tiny_recipe(shard), ALONE)


def evaluated(checkpoint, source, batch_size=NUM_PAIRS, contrastive_batch_size=BATCH_SIZE):
    dataset = as_dataset(checkpoint, source)
    loader = make_loader(dataset, EvaluationOrder(len(dataset), batch_size), num_workers=0)
    results = concatenate(run_pairs(checkpoint.model, loader))
    return aggregate(results, scaling_of(checkpoint.model), contrastive_batch_size, LossWeights())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_model_in_another_precision_is_evaluated(checkpoint, shard, dtype):
    source = open_source(str(shard))
    expected = evaluate_checkpoint(checkpoint, source, BATCH_SIZE, LossWeights())
    checkpoint.model.to(dtype)
    found = evaluate_checkpoint(checkpoint, source, BATCH_SIZE, LossWeights())
    assert found.coca_loss == pytest.approx(expected.coca_loss, rel=0.02)


def random_embeddings(count: int, seed: int = 0) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.nn.functional.normalize(torch.randn(count, 6, generator=generator), dim=-1) for _ in range(2))
    return Embeddings(image, text, torch.arange(count), torch.arange(count))


# --- How a split is read


@pytest.mark.parametrize("batch_size", [1, 3, 7, 19])
def test_batching_of_a_split_does_not_change_results(checkpoint, shard, batch_size):
    source = open_source(str(shard))
    whole, parts = (evaluated(checkpoint, source, size).flat() for size in (NUM_PAIRS, batch_size))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_perplexity_is_per_token_and_not_per_caption_or_batch(checkpoint, shard):
    source = open_source(str(shard))
    dataset = as_dataset(checkpoint, source)
    (batch,) = make_loader(dataset, EvaluationOrder(NUM_PAIRS, NUM_PAIRS), num_workers=0)
    with torch.inference_mode():
        output = checkpoint.model.eval()(batch.images, batch.token_ids, batch.lengths)
        captions = by_caption(checkpoint.model, output, batch.lengths)
    nll, count = 0.0, 0
    for logits, ids in zip(captions, batch.token_ids.tolist(), strict=True):
        for token, label in zip(logits.log_softmax(-1), ids[1:]):  # noqa: B905
            nll -= token[label].item()
            count += 1
    result = evaluated(checkpoint, source, batch_size=3)
    assert result.captioning_loss == pytest.approx(nll / count, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(nll / count), rel=1e-4)


def test_coca_loss_is_the_weighted_sum(checkpoint, shard):
    result = evaluate_checkpoint(checkpoint, open_source(str(shard)), BATCH_SIZE, LossWeights(0.5, 3.0))
    assert result.coca_loss == pytest.approx(0.5 * result.contrastive_loss + 3.0 * result.captioning_loss)


def test_split_smaller_than_a_batch_raises_with_a_fix(checkpoint, shard):
    with pytest.raises(UserError, match=r"batch size 64 needs at least that many pairs.* add pairs, or .* 20 or less"):
        evaluate_checkpoint(checkpoint, open_source(str(shard)), 64, LossWeights())


def test_pairs_are_counted_by_captions_not_images(checkpoint):
    pairs = PairsInMemory([replace(pair, more_captions=("a drawing", "a sign")) for pair in real_pairs(4)])
    result = evaluate_checkpoint(checkpoint, pairs, 12, LossWeights())
    assert (result.num_pairs, result.contrastive_batch_size) == (12, 12)
    with pytest.raises(UserError, match=r"got 12; .* to 12 or less"):
        evaluate_checkpoint(checkpoint, pairs, 13, LossWeights())


class Counted(PairsInMemory):
    """Pairs that count how often they are read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def test_image_with_several_captions_is_encoded_once(checkpoint, monkeypatch):
    texts = ("a drawing", "a sign", "a picture in a book")
    pairs = Counted([replace(pair, more_captions=texts) for pair in real_pairs(6)])
    decoded, encoded = [], []
    read = Preprocess.decode_squares

    def counted(self, files, **how):
        return read(self, (decoded.append(file) or file for file in files), **how)

    monkeypatch.setattr(Preprocess, "decode_squares", counted)
    checkpoint.model.image_encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    shared = evaluate_checkpoint(checkpoint, pairs, 10, LossWeights())
    assert (pairs.reads, len(decoded)) == (6, 6)
    assert encoded == [3, 3, 1]  # of 10, 10 and 4 pairs: image 2 has captions in two batches
    alone = evaluated(checkpoint, every_caption(pairs), batch_size=1, contrastive_batch_size=10)
    assert shared.flat() == pytest.approx(alone.flat(), rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_the_model_is_restored(checkpoint, shard, training):
    checkpoint.model.train(training)
    evaluated(checkpoint, open_source(str(shard)))
    assert checkpoint.model.training is training


# --- The contrastive loss of a split


def test_split_of_one_batch_has_that_batchs_loss():
    e = random_embeddings(8)
    pairs = e.pairs(torch.arange(len(e.image)))
    expected = contrastive_loss(pairs, pairs, SCALE)
    assert split_contrastive_loss(e, SCALING, 8) == pytest.approx(expected.item())


@pytest.mark.parametrize("num_pairs", [9, 12, 15])
def test_every_pair_counts_and_every_batch_is_of_the_stated_size(monkeypatch, num_pairs):
    seen = []

    def spy(rows, columns, scale, bias):
        seen.append(rows.image[:, 0].tolist())
        return torch.tensor(1.0)

    monkeypatch.setattr("grr_coca.evaluate.split.contrastive_loss", spy)
    e = random_embeddings(num_pairs)
    assert split_contrastive_loss(e, SCALING, 4) == 1.0
    assert {len(batch) for batch in seen} == {4}
    assert {value for batch in seen for value in batch} == set(e.image[:, 0].tolist())


# --- Several right answers


def test_equal_captions_are_right_answers_of_each_other(checkpoint, tmp_path):
    pairs = [with_caption(pair, "a cat") for pair in real_pairs(10)]
    result = evaluated(checkpoint, open_source(str(write_shard(tmp_path / "a.tar", pairs))), contrastive_batch_size=5)
    assert result.text_to_image["R@1"] == result.image_to_text["R@1"] == result.chance["R@1"] == 1.0
    assert result.contrastive_loss == pytest.approx(0.0, abs=1e-6), "equal captions are no negatives"


def test_chance_level_accounts_for_equal_captions(checkpoint, tmp_path):
    pairs = [with_caption(pair, f"caption {i // 2}") for i, pair in enumerate(real_pairs(10))]
    result = evaluated(checkpoint, open_source(str(write_shard(tmp_path / "a.tar", pairs))))
    assert result.chance["R@1"] == pytest.approx(2 / 10)
    assert result.chance["R@10"] == 1.0


# --- Models that are worth nothing


def collapse(model) -> None:
    """One embedding for everything."""
    with torch.no_grad():
        for pooled in (model.image_proj, model.text_proj):
            pooled.weight.zero_()


def test_collapsed_model_is_no_better_than_chance(checkpoint, shard):
    collapse(checkpoint.model)
    result = evaluated(checkpoint, open_source(str(shard)))
    for recalls in (result.text_to_image, result.image_to_text):
        assert all(recalls[k] <= result.chance[k] for k in recalls)
    assert result.contrastive_loss == pytest.approx(math.log(BATCH_SIZE), rel=1e-4)


def test_model_that_has_diverged_still_gets_its_numbers(checkpoint, shard):
    with torch.no_grad():
        checkpoint.model.multimodal_decoder.lm_head.weight.mul_(1e5)
    result = evaluated(checkpoint, open_source(str(shard)))
    assert result.captioning_loss > 710
    assert result.perplexity > 1e300
