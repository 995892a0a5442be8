"""A text teacher in training: its folder, the words of each step, and what a whole run makes of it."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import drivers
from grr_coca.common.errors import UserError
from grr_coca.common.files import MANIFEST, whole_folder
from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import Batch
from grr_coca.data.sources.base import stable_id
from grr_coca.data.tokenizer import train_bpe
from grr_coca.model.checkpoint import from_pretrained, save_tensors
from grr_coca.model.losses import LossWeights, TeacherOptions
from grr_coca.train.logs import read_metrics
from grr_coca.train.loop import train
from grr_coca.train.recipe import Recipe, TeacherRecipe, load_recipe, save_recipe
from grr_coca.train.setup import dry_run, new_checkpoint, training_batches, training_sources
from grr_coca.train.teacher import EMBEDDINGS, Teacher, TeacherTexts, training_captions, write_teacher
from jobs import Job, differing_files, small_recipe
from support import (
    ALONE,
    CPU,
    PairsInMemory,
    differing,
    pretrain,
    real_pairs,
    silent,
    tiny_recipe,
    weights,
    write_shard,
)

WORDS = [f"{size} {thing}" for size in ("tiny", "small", "large", "huge") for thing in ("boat", "Cat", "moon", "hat")]


def embeddings(texts: list[str], width: int = 12) -> torch.Tensor:
    """Something of unit length that depends on the text alone."""
    rows = [np.random.default_rng(stable_id(text)).normal(size=width) for text in texts]
    return F.normalize(torch.tensor(np.array(rows).reshape(-1, width), dtype=torch.float32), dim=1)


def captions_of(recipe: Recipe) -> list[str]:
    return training_captions(training_sources(recipe)[0])


def taught(recipe: Recipe, folder: Path, **keys: object) -> Recipe:
    """The recipe with a teacher of its captions."""
    captions = captions_of(recipe)
    write_teacher(
        folder, captions, WORDS, embeddings(captions), embeddings(WORDS), {"teacher": "none of the real ones"}
    )
    return replace(recipe, teacher=TeacherRecipe(path=str(folder), **{"words": 6, **keys}))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    return taught(tiny_recipe(write_shard(folder / "pairs.tar", real_pairs(24)), steps=4), folder / "teacher")


# --- The folder


def test_each_caption_finds_its_embedding_in_any_case(recipe):
    texts = TeacherTexts.read(recipe.teacher.path)
    captions = captions_of(recipe)[::-1]
    assert len(texts) == len(captions) + len(WORDS)
    found = texts.of(torch.tensor([stable_id(caption) for caption in captions]))
    assert torch.allclose(found, embeddings(captions), atol=1e-3)
    pair = replace(real_pairs(1)[0], caption=captions[0].upper())
    texts.require_captions(PairsInMemory([pair]))


def test_a_caption_finds_its_embedding_in_any_form_of_its_accents(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    pairs = [replace(pair, caption=composed) for pair in real_pairs(1)]
    write_teacher(tmp_path / "teacher", [decomposed], ["hat"], embeddings([decomposed]), embeddings(["hat"]))
    TeacherTexts.read(str(tmp_path / "teacher")).require_captions(PairsInMemory(pairs))


def test_every_caption_that_training_may_draw_counts_each_once():
    first, second = real_pairs(2)
    pairs = [
        replace(first, caption="A  Cat", more_captions=("", "hat")),
        replace(second, caption="a cat", more_captions=("Dog",)),
    ]
    assert training_captions(PairsInMemory(pairs)) == ["a cat", "hat", "dog"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        UserError,
        match=rf"{tmp_path}/none: teacher: no such folder; `python scripts/text_teacher\.py RECIPE` writes it",
    ):
        TeacherTexts.read(str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["captions.txt", "words.txt", EMBEDDINGS])
def test_a_damaged_or_missing_file_is_named(recipe, tmp_path, name):
    folder = tmp_path / "teacher"
    taught(recipe, folder)
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: damaged: its checksum differs"):
        TeacherTexts.read(str(folder))
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: missing"):
        TeacherTexts.read(str(folder))
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"manifest\.json: missing or damaged"):
        TeacherTexts.read(str(folder))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"words": embeddings(WORDS, 11)}, r"the captions' embeddings have 12 numbers, those of the words 11"),
        ({"words": embeddings(WORDS[1:])}, r"has 15 embeddings of words, and words\.txt has 16 lines"),
        ({"captions": 2 * embeddings(["a", "b"])}, r"an embedding of captions is not of unit length"),
        ({"captions": torch.nan * embeddings(["a", "b"])}, r"an embedding of captions is not of unit length"),
        ({"captions": torch.ones(2)}, r"has no matrix 'captions'"),
    ],
    ids=["width", "count", "length", "nan", "vector"],
)
def test_texts_and_embeddings_that_do_not_fit_are_refused(tmp_path, tensors, said):
    folder = tmp_path / "teacher"
    write_teacher(folder, ["a", "b"], WORDS, embeddings(["a", "b"]), embeddings(WORDS))
    texts = {name: (folder / name).read_bytes() for name in ("captions.txt", "words.txt")}
    with whole_folder(folder) as partial_folder:
        for name, content in texts.items():
            (partial_folder / name).write_bytes(content)
        whole = {"captions": embeddings(["a", "b"]), "words": embeddings(WORDS)}
        save_tensors({**whole, **tensors}, partial_folder / EMBEDDINGS)
    with pytest.raises(UserError, match=said):
        TeacherTexts.read(str(folder))


def test_a_teacher_of_other_captions_is_refused_before_the_first_step(recipe, tmp_path):
    other = tiny_recipe(write_shard(tmp_path / "pairs.tar", real_pairs(30, "health")), steps=4)
    other = replace(other, teacher=recipe.teacher)
    said = rf"{recipe.teacher.path}: teacher: it has no embedding of \d+ of the \d+ training captions, such as '"
    with pytest.raises(UserError, match=said):
        pretrain(other, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    with pytest.raises(UserError, match=said):
        dry_run(other, new_checkpoint(other, ALONE), ALONE)


# --- The recipe


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"temperature": 0.0}, "temperature 0.0 is out of range"),
        ({"soft_targets": 1.0}, r"soft_targets 1\.0 is out of range"),
        ({"weight": -1.0}, r"weight -1\.0 is out of range"),
        ({"weight": 0.0}, "weight and soft_targets are both 0"),
        ({"weight": 0.0, "soft_targets": 0.1}, "words 128 are of no use with weight 0"),
        ({"words": -1}, "words -1 is out of range"),
    ],
)
def test_keys_out_of_range_are_refused(keys, said):
    with pytest.raises(UserError, match=said):
        TeacherRecipe(path="x", **keys)


def test_the_path_is_relative_to_the_recipes_folder_or_in_the_cache(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    for path, wanted in (("beside", str(tmp_path / "beside")), ("cache:teacher", "/somewhere/grr-coca/teacher")):
        save_recipe(replace(recipe, teacher=replace(recipe.teacher, path=path)), tmp_path / "recipe.yaml")
        assert load_recipe(tmp_path / "recipe.yaml").teacher == replace(recipe.teacher, path=wanted)


# --- The words of each step


def steps_of(recipe: Recipe, ranks: Ranks = ALONE, first_step: int = 0) -> list[list[Batch]]:
    pairs = training_sources(recipe)[0]
    return list(training_batches(recipe, new_checkpoint(recipe, ALONE), pairs, ranks, first_step))


def words_of(steps: list[list[Batch]]) -> list[list[int]]:
    return [[i for b in batches if b.words is not None for i in b.words.ids.tolist()] for batches in steps]


def test_every_word_comes_once_an_epoch_with_its_own_tokens_and_embedding(recipe):
    recipe = replace(recipe, schedule=replace(recipe.schedule, steps=8))
    steps = steps_of(recipe)
    ids = [i for step in words_of(steps) for i in step]
    assert set(ids[:16]) == set(ids[16:32]) == set(map(stable_id, map(str.lower, WORDS)))
    tokenizer = new_checkpoint(recipe, ALONE).tokenizer
    ((batch,), *_) = steps
    for row, number in enumerate(batch.words.ids.tolist()):
        (word,) = (word for word in WORDS if stable_id(word.lower()) == number)
        wanted = tokenizer.encode_row(word, 24)
        assert batch.words.token_ids[row, : batch.words.lengths[row]].tolist() == wanted
        assert torch.allclose(batch.words.teacher[row], embeddings([word])[0], atol=1e-3)


def test_ranks_pieces_and_resuming_change_nothing_of_the_words(recipe):
    wanted = words_of(steps_of(recipe))
    assert len({tuple(step) for step in wanted}) == 4
    assert words_of(steps_of(recipe, first_step=2)) == wanted[2:]
    in_pieces = replace(recipe, data=replace(recipe.data, micro_batch_size=1))
    assert words_of(steps_of(in_pieces)) == wanted, "eight pieces, six words"
    halves = [words_of(steps_of(recipe, Ranks(rank, 2, CPU))) for rank in range(2)]
    assert [first + second for first, second in zip(*halves, strict=True)] == wanted


def test_words_that_cannot_be_shared_or_are_too_few_are_refused(recipe):
    tokenizer, texts = train_bpe(WORDS, 300), TeacherTexts.read(recipe.teacher.path)
    seven = replace(recipe, teacher=replace(recipe.teacher, words=7))
    with pytest.raises(UserError, match=r"teacher: words 7 cannot be shared evenly among 2 processes; give 6 or 8"):
        seven.require_even_shares(2)
    with pytest.raises(UserError, match=r"words\.txt: has 16 words, fewer than teacher: words 17"):
        Teacher(texts, 17, tokenizer, 24, seed=0, ranks=ALONE)


# --- Whole runs


@pytest.fixture(scope="module")
def plain(recipe, tmp_path_factory):
    """The weights of a short run with the teacher."""
    return weights(pretrain(recipe, tmp_path_factory.mktemp("plain") / "run"))


def test_the_loss_of_the_teacher_is_logged_and_falls(recipe, tmp_path):
    pretrain(replace(recipe, schedule=replace(recipe.schedule, steps=30)), tmp_path / "run")
    first, *_, last = (row["teacher"] for row in read_metrics(tmp_path / "run", "train"))
    assert last < 0.9 * first
    assert "teacher" not in read_metrics(tmp_path / "run", "val")[0], "it is for training alone"


def test_without_a_teacher_nothing_of_it_is_trained_or_logged(recipe, plain, tmp_path):
    without = weights(pretrain(replace(recipe, teacher=None), tmp_path / "run"))
    assert len(differing(plain, without)) > len(without) // 2
    assert "teacher" not in read_metrics(tmp_path / "run", "train")[0]


@pytest.mark.parametrize("keys", [{"words": 0}, {"soft_targets": 0.3}, {"temperature": 0.5}, {"weight": 0.5}])
def test_each_key_changes_the_weights(recipe, plain, tmp_path, keys):
    changed = weights(pretrain(replace(recipe, teacher=replace(recipe.teacher, **keys)), tmp_path / "run"))
    assert len(differing(plain, changed)) > len(plain) // 2


def test_the_trainer_gets_the_numbers_of_the_recipe(recipe):
    wanted = LossWeights(1.0, 2.0, 0.0, TeacherOptions(1.0, 0.0, 0.1))
    assert recipe.loss_weights == wanted
    assert replace(recipe, teacher=None).loss_weights == LossWeights()


def test_a_dry_run_trains_with_it(recipe):
    text = dry_run(recipe, new_checkpoint(recipe, ALONE), ALONE)
    assert "first loss" in text


def test_another_teacher_is_refused_when_a_run_is_resumed(recipe, tmp_path):
    mine = taught(recipe, tmp_path / "teacher")
    pretrain(replace(mine, schedule=replace(mine.schedule, steps=2)), tmp_path / "run")
    point = tmp_path / "run" / "checkpoints" / "step-000000002"
    captions = captions_of(recipe)
    write_teacher(tmp_path / "teacher", captions, WORDS, embeddings(captions), embeddings(WORDS[::-1]))
    with pytest.raises(
        UserError, match=r"teacher: data: teacher of the run: its texts or embeddings have changed since"
    ):
        train(mine, from_pretrained(point), tmp_path / "run", ALONE, silent, point)


def test_a_killed_run_with_a_teacher_ends_in_the_same_bytes(tmp_path):
    recipe = taught(small_recipe(tmp_path), tmp_path / "teacher", soft_targets=0.2)
    jobs = []
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        jobs.append(Job(recipe, tmp_path / name, 1))
    jobs[0].start(partial(drivers.die_before, "micro-batch", 20)).wait()
    assert jobs[0].steps() != []
    assert differing_files(jobs[0].finish(), jobs[1].finish()) == []
