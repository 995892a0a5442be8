"""What is drawn for a training sample: streams of random numbers, patch dropout, and mixtures with siblings."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grr_coca.data.augment import MAX_REPLACEMENTS, Siblings, Stream, kept_patches, sample_rng
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.dataset import PairDataset
from grr_coca.data.loader import make_loader
from grr_coca.data.order import GlobalBatches, SampleRef, Shuffle, TrainingOrder
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.open import open_source
from grr_coca.data.tokenizer import train_bpe
from support import real_pairs, with_caption, write_shard

PAIRS = real_pairs(20)
TOKENIZER = train_bpe([pair.caption for pair in PAIRS], 320)


def dataset_of(source, **options) -> PairDataset:
    return PairDataset(source, TOKENIZER, Preprocess(16), 40, **options)


# --- Streams


def test_a_draw_is_what_its_seed_always_gave():
    ref, numbers = SampleRef(epoch=2, sample=7), {"CAPTION": 101, "PATCHES": 1000, "MIX": 1001, "STAND_IN": 1}
    assert {stream.name: stream.value for stream in Stream} == numbers
    assert sample_rng(3, ref).random() == np.random.default_rng((3, 2, 7)).random()
    for stream, number in zip(Stream, sorted(numbers.values()), strict=True):
        assert sample_rng(3, ref, stream).random() == np.random.default_rng((3, 2, 7, number)).random()


def test_no_two_draws_of_a_sample_have_the_same_numbers():
    attempts = [Stream.STAND_IN + attempt for attempt in range(MAX_REPLACEMENTS)]
    streams = [None, *attempts, Stream.CAPTION, Stream.PATCHES, Stream.MIX]
    assert len({sample_rng(0, SampleRef(0, 0), stream).random() for stream in streams}) == len(streams)


# --- Patch dropout

KEEP = partial(kept_patches, 16, 0.5)


@pytest.fixture
def source(tmp_path):
    return open_source(str(write_shard(tmp_path / "a.tar", PAIRS)))


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


def test_a_sample_drops_the_same_patches_in_the_same_epoch_alone(source):
    dataset = dataset_of(source, keep_patches=KEEP, seed=3)
    first, again = (dataset[SampleRef(1, 7)].kept_patches for _ in range(2))
    assert torch.equal(first, again)
    others = [
        dataset[SampleRef(2, 7)].kept_patches,
        dataset[SampleRef(1, 8)].kept_patches,
        dataset_of(source, keep_patches=KEEP, seed=4)[SampleRef(1, 7)].kept_patches,
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_workers_do_not_change_what_is_dropped(source):
    dataset = dataset_of(source, keep_patches=KEEP, seed=3)
    order = TrainingOrder(Shuffle(len(dataset), seed=3), GlobalBatches(6, count=7))
    alone, helped = ([b.kept_patches for b in make_loader(dataset, order, n)] for n in (0, 2))
    assert all(kept.shape == (6, 8) for kept in alone)
    assert all(map(torch.equal, alone, helped))


def test_augmentation_is_the_same_with_and_without_patch_dropout(source):
    strong = Augmentation(scale=(0.8, 1.2), shift=0.1, rotate=15, jitter=0.3, grey=0.2)
    with_dropout, without = (
        dataset_of(source, keep_patches=keep, augmentation=strong)[SampleRef(0, 5)].image for keep in (KEEP, None)
    )
    assert torch.equal(with_dropout, without)


def test_kept_patches_move_with_their_batch_and_none_are_there_without_patch_dropout(source):
    order = TrainingOrder(Shuffle(20, seed=0), GlobalBatches(4, 1))
    (batch,) = make_loader(dataset_of(source, keep_patches=KEEP), order, 0)
    assert batch.to(torch.device("meta")).kept_patches.device.type == "meta"
    assert torch.equal(batch.to(torch.device("cpu")).kept_patches, batch.kept_patches)
    (batch,) = make_loader(dataset_of(source), order, 0)
    assert batch.kept_patches is batch.to(torch.device("cpu")).kept_patches is None


# --- Siblings

ALIKE = [with_caption(pair, text) for pair, text in zip(PAIRS, ("cat", "dog", "Cat ", "cat", "cow"), strict=False)]
PLAIN, SWAPS = Augmentation(), Augmentation(swap=1.0)


@pytest.fixture
def alike(tmp_path):
    return open_source(str(write_shard(tmp_path / "alike.tar", ALIKE)))


def look(source, sample: int, augmentation: Augmentation = SWAPS, seed: int = 0) -> torch.Tensor:
    return dataset_of(source, augmentation=augmentation, seed=seed)[SampleRef(0, sample)].image


def test_siblings_have_the_same_caption_and_none_is_its_own(alike):
    siblings, rng = Siblings(alike), np.random.default_rng(0)
    assert {siblings.draw(0, rng) for _ in range(30)} == {2, 3}
    assert {siblings.draw(3, rng) for _ in range(30)} == {0, 2}
    assert siblings.draw(1, rng) is None


def test_an_image_is_mixed_with_its_siblings_alone(alike):
    plain = look(alike, 0, PLAIN)
    assert any(not torch.equal(look(alike, 0, SWAPS, seed), plain) for seed in range(3))
    assert torch.equal(look(alike, 1), look(alike, 1, PLAIN))


def test_a_mixture_does_not_depend_on_what_was_read_before(alike):
    dataset = dataset_of(alike, augmentation=SWAPS)
    images = [dataset[SampleRef(1, sample)].image for sample in (0, 2, 3, 0)]
    assert torch.equal(images[0], images[3])
    assert torch.equal(dataset_of(alike, augmentation=SWAPS)[SampleRef(1, 3)].image, images[2])


def test_a_broken_sibling_leaves_the_image_as_it_is(tmp_path):
    pairs = [replace(pair, image=b"") if index in (2, 3) else pair for index, pair in enumerate(ALIKE)]
    source = open_source(str(write_shard(tmp_path / "b.tar", pairs)))
    assert torch.equal(look(source, 0), look(source, 0, PLAIN))
