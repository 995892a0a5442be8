"""Other images of the same thing, and training images that are mixed with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from grr_coca.data.augment import Siblings
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.dataset import PairDataset
from grr_coca.data.order import SampleRef
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.open import open_source
from grr_coca.data.tokenizer import train_bpe
from support import real_pairs, with_caption, write_shard

CAPTIONS = ("cat", "dog", "Cat ", "cat", "cow")
PAIRS = [with_caption(pair, text) for pair, text in zip(real_pairs(5), CAPTIONS, strict=True)]
TOKENIZER = train_bpe(CAPTIONS, 300)
PLAIN, SWAPS = Augmentation(), Augmentation(swap=1.0)


@pytest.fixture
def source(tmp_path):
    return open_source(str(write_shard(tmp_path / "a.tar", PAIRS)))


def dataset_of(source, augmentation: Augmentation = SWAPS, seed: int = 0) -> PairDataset:
    return PairDataset(source, TOKENIZER, Preprocess(16), 12, augmentation=augmentation, seed=seed)


def look(source, sample: int, augmentation: Augmentation = SWAPS, seed: int = 0) -> torch.Tensor:
    return dataset_of(source, augmentation, seed)[SampleRef(0, sample)].image


def test_siblings_have_the_same_caption_and_none_is_its_own(source):
    siblings, rng = Siblings(source), np.random.default_rng(0)
    assert {siblings.draw(0, rng) for _ in range(30)} == {2, 3}
    assert {siblings.draw(3, rng) for _ in range(30)} == {0, 2}
    assert siblings.draw(1, rng) is None


def test_an_image_is_mixed_with_its_siblings_alone(source):
    plain = look(source, 0, PLAIN)
    assert any(not torch.equal(look(source, 0, SWAPS, seed), plain) for seed in range(3))
    assert torch.equal(look(source, 1), look(source, 1, PLAIN))


def test_a_mixture_does_not_depend_on_what_was_read_before(source):
    dataset = dataset_of(source)
    images = [dataset[SampleRef(1, sample)].image for sample in (0, 2, 3, 0)]
    assert torch.equal(images[0], images[3])
    assert torch.equal(dataset_of(source)[SampleRef(1, 3)].image, images[2])


def test_a_broken_sibling_leaves_the_image_as_it_is(tmp_path):
    pairs = [replace(pair, image=b"") if index in (2, 3) else pair for index, pair in enumerate(PAIRS)]
    source = open_source(str(write_shard(tmp_path / "b.tar", pairs)))
    assert torch.equal(look(source, 0), look(source, 0, PLAIN))
