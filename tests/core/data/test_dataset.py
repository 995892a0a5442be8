"""Pairs as tensors: the same ones whatever reads them."""

import multiprocessing
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing import util

import pytest
import torch
from support import PairsInMemory, real_pairs, shard_members, warnings_of, with_caption, write_shard, write_tar

from grr_coca.common.errors import UserError
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.batch import Batch
from grr_coca.data.dataset import PairDataset, collate, make_loader
from grr_coca.data.order import EvaluationOrder, GlobalBatches, SampleRef, Shuffle, TrainingOrder
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.random_changes import kept_patches
from grr_coca.data.sources.open import open_source
from grr_coca.data.tokenizer import CLS_SLOT, clip_bpe, train_bpe

PAIRS = real_pairs(20)
TOKENIZER = train_bpe([pair.caption for pair in PAIRS], 320)
LOGGER = "grr_coca.data.dataset"


def dataset_of(source, context_length: int = 40, **options) -> PairDataset:
    return PairDataset(source, TOKENIZER, Preprocess(16), context_length, **options)


def batches_of(dataset: PairDataset, num_workers: int, order=None) -> list[Batch]:
    return list(make_loader(dataset, order or EvaluationOrder(len(dataset), 8), num_workers))


@pytest.fixture
def shard(tmp_path):
    return open_source(str(write_shard(tmp_path / "a.tar", PAIRS)))


def captions(*texts: str):
    return PairsInMemory([with_caption(pair, text) for pair, text in zip(PAIRS, texts, strict=False)])


# --- The same samples, whatever reads them


def test_workers_change_neither_the_samples_nor_their_order(shard):
    strong = Augmentation(scale=(0.8, 1.2), shift=0.1, rotate=15, jitter=0.3, grey=0.2)
    dataset = dataset_of(shard, augmentation=strong, keep_patches=partial(kept_patches, 16, 0.5), seed=3)
    order = TrainingOrder(Shuffle(len(dataset), seed=3), GlobalBatches(6, count=7))  # batches 4 and 7 span two epochs
    alone, helped = (batches_of(dataset, num_workers, order) for num_workers in (0, 2))
    assert len(alone) == len(helped) == 7
    for first, second in zip(alone, helped, strict=True):
        assert first.keys == second.keys
        for name in ("images", "token_ids", "lengths", "next_tokens", "caption_ids", "image_ids", "kept_patches"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name


# --- Batches


def test_batch_is_padded_and_predicts_only_real_tokens():
    short, long = (dataset_of(captions("cat", "smiling face with hearts"))[SampleRef(0, i)] for i in range(2))
    batch = collate([short, long])
    length = len(short.token_ids)
    assert batch.token_ids.shape == (2, len(long.token_ids))
    assert batch.lengths.tolist() == [length, len(long.token_ids)]
    assert batch.token_ids[0, :length].tolist() == short.token_ids
    assert batch.token_ids[0, length:].eq(CLS_SLOT).all()
    assert batch.next_tokens.tolist() == [*short.token_ids[1:-1], *long.token_ids[1:-1]]


# --- Captions


def test_long_captions_are_truncated_and_reported_once():
    dataset = dataset_of(captions("cat", "violin " * 30, "trumpet " * 30, "dog", "drum " * 30), context_length=12)
    with warnings_of(LOGGER) as messages:
        batches = list(make_loader(dataset, EvaluationOrder(5, 2), 0))
    assert [batch.cut_captions for batch in batches] == [1, 1, 1]
    rows = [row for batch in batches for row in batch.token_ids.tolist() if len(row) == 12]
    assert [row[-2:] for row in rows if row[-2] == TOKENIZER.eos_id] == [[TOKENIZER.eos_id, CLS_SLOT]] * 3
    assert len(messages) == 1
    assert messages[0].startswith(
        f"1 of 2 captions, such as that of {PAIRS[1].key}, are truncated to the context of 9 "
    )


def test_caption_that_just_fits_is_not_warned_of():
    length = len(TOKENIZER.encode("crossed fingers")) + 3
    with warnings_of(LOGGER) as messages:
        (batch,) = batches_of(dataset_of(captions("crossed fingers"), context_length=length), num_workers=0)
    assert batch.cut_captions == 0
    assert messages == []


def test_too_long_temporary_folder_is_named(shard, tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)
    monkeypatch.setattr(util, "Finalize", lambda *_, **__: None)  # the folder goes with that of this test
    assert len(batches_of(dataset_of(shard), 0)) == 3
    told = pytest.raises(UserError, match=r"(long){30}: .*; set TMPDIR to a shorter one, or data\.num_workers to 0")
    with told if "long" in util.get_temp_dir() else nullcontext():  # Python 3.14 takes another folder then
        assert len(batches_of(dataset_of(shard), 2)) == 3


# --- Who says the same


def test_ids_of_captions_ignore_case_and_spaces():
    dataset = dataset_of(captions("Red heart", "red  heart\n", "red hearts"))
    ids = [dataset[SampleRef(0, i)].caption_id for i in range(3)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("Un caf\u00e9", "un cafe\u0301", id="accents"),
        pytest.param("a  red\n heart ", "a red heart", id="spaces"),
        pytest.param("a \u201ccat\u2019s\u201d hat", 'a "cat\'s" hat', id="quotes"),
    ],
)
def test_captions_with_equal_tokens_have_equal_ids(one, other):
    dataset = PairDataset(captions(one, other), clip_bpe(), Preprocess(16), 40)
    samples = [dataset[SampleRef(0, i)] for i in range(2)]
    assert samples[0].token_ids == samples[1].token_ids
    assert samples[0].caption_id == samples[1].caption_id


def test_images_have_unique_ids(shard):
    dataset = dataset_of(shard)
    assert len({dataset[SampleRef(0, i)].image_id for i in range(len(dataset))}) == len(PAIRS)


def test_equal_keys_in_two_shards_are_not_the_same_image(tmp_path):
    for i in range(2):
        write_shard(tmp_path / f"{i}.tar", [replace(PAIRS[i], key="0001")])
    dataset = dataset_of(open_source(str(tmp_path)))
    assert dataset[SampleRef(0, 0)].image_id != dataset[SampleRef(0, 1)].image_id


# --- Broken images


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_image_names_the_pair_in_one_line(tmp_path, num_workers):
    members = shard_members(PAIRS)
    members[f"{PAIRS[9].key}.webp"] = PAIRS[9].image[:100]
    dataset = dataset_of(open_source(str(write_tar(tmp_path / "a.tar", members))))
    with pytest.raises(UserError, match=rf"a\.tar: {PAIRS[9].key}: ") as caught:
        batches_of(dataset, num_workers)
    assert "Traceback" not in str(caught.value)
    assert multiprocessing.active_children() == []  # where garbage keeps workers, its collection waits for them
