"""Patch dropout: what is dropped is a function of seed, epoch and sample, and of nothing else."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grr_coca.data.augment import kept_patches
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.dataset import PairDataset
from grr_coca.data.loader import make_loader
from grr_coca.data.order import GlobalBatches, SampleRef, Shuffle, TrainingOrder
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.open import open_source
from grr_coca.data.tokenizer import train_bpe
from support import real_pairs, write_shard

PAIRS = real_pairs(20)
TOKENIZER = train_bpe([pair.caption for pair in PAIRS], 320)
KEEP = partial(kept_patches, 16, 0.5)


@pytest.fixture
def source(tmp_path):
    return open_source(str(write_shard(tmp_path / "a.tar", PAIRS)))


def dataset_of(source, keep_patches=KEEP, **options) -> PairDataset:
    return PairDataset(source, TOKENIZER, Preprocess(16), 40, keep_patches=keep_patches, **options)


@given(num_patches=st.integers(1, 300), share=st.floats(0, 0.999), seed=st.integers(0, 99))
def test_the_stated_share_is_dropped_each_patch_once_in_order_and_never_all(num_patches, share, seed):
    kept = kept_patches(num_patches, share, np.random.default_rng(seed)).tolist()
    assert len(kept) == max(1, num_patches - round(share * num_patches))
    assert kept == sorted(set(kept))
    assert set(kept) <= set(range(num_patches))


def test_every_patch_is_kept_equally_often():
    rng = np.random.default_rng(0)
    counts = torch.stack([kept_patches(16, 0.75, rng) for _ in range(4000)]).flatten().bincount(minlength=16)
    # Binomial: 1,000 ± 27 each.
    assert (counts - 1000).abs().max() < 4 * 27.4


def test_a_sample_drops_the_same_in_the_same_epoch_alone(source):
    dataset = dataset_of(source, seed=3)
    first, again = (dataset[SampleRef(1, 7)].kept_patches for _ in range(2))
    assert torch.equal(first, again)
    others = [
        dataset[SampleRef(2, 7)].kept_patches,
        dataset[SampleRef(1, 8)].kept_patches,
        dataset_of(source, seed=4)[SampleRef(1, 7)].kept_patches,
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_workers_do_not_change_what_is_dropped(source):
    dataset = dataset_of(source, seed=3)
    order = TrainingOrder(Shuffle(len(dataset), seed=3), GlobalBatches(6, count=7))
    alone, helped = ([b.kept_patches for b in make_loader(dataset, order, n)] for n in (0, 2))
    assert all(kept.shape == (6, 8) for kept in alone)
    assert all(map(torch.equal, alone, helped))


def test_augmentation_is_the_same_with_and_without_patch_dropout(source):
    strong = Augmentation(scale=(0.8, 1.2), shift=0.1, rotate=15, jitter=0.3, grey=0.2)
    images = [dataset_of(source, keep, augmentation=strong)[SampleRef(0, 5)].image for keep in (KEEP, None)]
    assert torch.equal(*images)


def test_without_patch_dropout_a_batch_carries_nothing(source):
    (batch,) = make_loader(dataset_of(source, None), TrainingOrder(Shuffle(20, seed=0), GlobalBatches(4, 1)), 0)
    assert batch.kept_patches is None
    assert batch.to(torch.device("cpu")).kept_patches is None


def test_kept_patches_move_with_their_batch(source):
    (batch,) = make_loader(dataset_of(source), TrainingOrder(Shuffle(20, seed=0), GlobalBatches(4, 1)), 0)
    assert batch.to(torch.device("meta")).kept_patches.device.type == "meta"
    assert torch.equal(batch.to(torch.device("cpu")).kept_patches, batch.kept_patches)
