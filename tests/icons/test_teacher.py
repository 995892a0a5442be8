"""A text teacher in training: its folder, its part of a recipe, and what a whole run makes of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import (
    ALONE,
    PairsInMemory,
    differing,
    pretrain,
    real_pairs,
    shard_members,
    silent,
    tiny_recipe,
    weights,
    with_caption,
    write_shard,
    write_tar,
)

from grr_coca.common.errors import UserError
from grr_coca.common.files import atomic_folder
from grr_coca.data.dataset import PairDataset, make_loader
from grr_coca.data.order import EvaluationOrder
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.base import stable_id
from grr_coca.data.sources.open import open_source
from grr_coca.data.tokenizer import train_bpe
from grr_coca.model.checkpoint import from_pretrained, save_tensors
from grr_coca.model.losses import LossWeights
from grr_coca.train.forecast import forecast
from grr_coca.train.logs import read_metrics
from grr_coca.train.loop import train
from grr_coca.train.recipe import Recipe, TeacherRecipe, load_recipe, save_recipe
from grr_coca.train.setup import new_checkpoint, training_batches, training_sources
from grr_coca_icons.teacher import CAPTIONS, EMBEDDINGS, Teacher, training_captions, write_teacher


def embeddings(texts: list[str], width: int = 12) -> torch.Tensor:
    """Something of unit length that depends on the text alone."""
    rows = [np.random.default_rng(stable_id(text)).normal(size=width) for text in texts]
    return F.normalize(torch.tensor(np.array(rows).reshape(-1, width), dtype=torch.float32), dim=1)


def captions_of(recipe: Recipe) -> list[str]:
    return training_captions(training_sources(recipe)[0])


def taught(recipe: Recipe, folder: Path, **keys: object) -> Recipe:
    """The recipe with a teacher of its captions."""
    captions = captions_of(recipe)
    write_teacher(folder, captions, embeddings(captions), {"teacher": "none of the real ones"})
    return replace(recipe, teacher=TeacherRecipe(path=str(folder), words=0, **keys))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    return taught(tiny_recipe(write_shard(folder / "pairs.tar", real_pairs(24)), steps=4), folder / "teacher")


# --- The folder


def test_each_caption_finds_its_embedding_in_any_case(recipe):
    teacher = Teacher.read(recipe.teacher.path)
    captions = captions_of(recipe)
    assert len(teacher) == len(captions)
    pairs = [replace(real_pairs(1)[0], caption=caption.upper()) for caption in captions]
    teacher.require_captions(PairsInMemory(pairs))
    unknown = PairsInMemory([*pairs, with_caption(pairs[0], "of no embedding")])
    with pytest.raises(
        UserError, match=rf"no embeddings of 1 of the {len(captions) + 1} training captions, such as 'of no"
    ):
        teacher.require_captions(unknown)


def test_embeddings_are_found_in_any_unicode_normal_form(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    pairs = PairsInMemory([with_caption(pair, composed) for pair in real_pairs(1)])
    for known in ([decomposed], ["cafe"]):
        write_teacher(tmp_path / known[0], known, embeddings(known))
    Teacher.read(str(tmp_path / decomposed)).require_captions(pairs)
    with pytest.raises(UserError, match="no embeddings of 1 of the 1"):
        Teacher.read(str(tmp_path / "cafe")).require_captions(pairs)


def test_every_caption_of_training_counts_once():
    first, second = real_pairs(2)
    pairs = [
        replace(first, caption="A  Cat", more_captions=("", "hat")),
        replace(second, caption="a cat", more_captions=("Dog",)),
    ]
    assert training_captions(PairsInMemory(pairs)) == ["a cat", "hat", "dog"]


def test_pairs_without_captions_do_not_count(tmp_path):
    members = shard_members(real_pairs(3))
    del members[f"{real_pairs(3)[1].key}.txt"]
    source = open_source(str(write_tar(tmp_path / "pairs.tar", members)))
    assert training_captions(source) == [real_pairs(3)[index].caption.lower() for index in (0, 2)]


def test_unknown_caption_raises_in_its_step(recipe):
    teacher = Teacher.read(recipe.teacher.path)
    pairs = PairsInMemory([with_caption(real_pairs(1)[0], "something else")])
    (batch,) = make_loader(PairDataset(pairs, train_bpe(["a cat"], 300), Preprocess(16), 24), EvaluationOrder(1, 1), 0)
    with pytest.raises(
        UserError, match="the embedding of a training caption is missing, because the pairs have changed"
    ):
        teacher.teach(batch)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(
        UserError,
        match=rf"{tmp_path}/none: teacher: folder not found; create it with `python scripts/text_teacher\.py RECIPE`",
    ):
        Teacher.read(str(tmp_path / "none"))


@pytest.mark.parametrize("name", [CAPTIONS, EMBEDDINGS])
def test_corrupt_file_is_named(recipe, tmp_path, name):
    folder = tmp_path / "teacher"
    taught(recipe, folder)
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: corrupt: its size or checksum differs"):
        Teacher.read(str(folder))


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (embeddings(["a"]), r"has 1 embeddings, but captions\.txt has 2 lines"),
        (2 * embeddings(["a", "b"]), r"an embedding is not of unit length"),
        (torch.nan * embeddings(["a", "b"]), r"an embedding is not of unit length"),
        (torch.ones(2), r"has no matrix 'captions'"),
    ],
    ids=["count", "length", "nan", "vector"],
)
def test_rejects_mismatched_captions_and_embeddings(tmp_path, captions, message):
    folder = tmp_path / "teacher"
    with atomic_folder(folder) as partial_folder:
        (partial_folder / CAPTIONS).write_text("a\nb\n")
        save_tensors({"captions": captions}, partial_folder / EMBEDDINGS)
    with pytest.raises(UserError, match=message):
        Teacher.read(str(folder))


def test_invalid_utf8_captions_raise(tmp_path):
    with atomic_folder(tmp_path / "teacher") as partial_folder:
        (partial_folder / CAPTIONS).write_bytes(b"K\xe4se\n")
        save_tensors({"captions": embeddings(["a"])}, partial_folder / EMBEDDINGS)
    with pytest.raises(UserError, match=r"captions\.txt: cannot be read as UTF-8 text"):
        Teacher.read(str(tmp_path / "teacher"))


def test_words_of_an_earlier_version_are_not_read(tmp_path):
    folder = tmp_path / "teacher"
    with atomic_folder(folder) as partial_folder:
        (partial_folder / CAPTIONS).write_text("a\nb\n")
        (partial_folder / "words.txt").write_text("c\n")
        tensors = {"captions": embeddings(["a", "b"]), "words": embeddings(["c"])}
        save_tensors(tensors, partial_folder / EMBEDDINGS)
    assert len(Teacher.read(str(folder))) == 2


def test_rejects_a_teacher_with_other_captions_before_training(recipe, tmp_path):
    other = tiny_recipe(write_shard(tmp_path / "pairs.tar", real_pairs(30, "health")), steps=4)
    other = replace(other, teacher=recipe.teacher)
    message = rf"{recipe.teacher.path}: teacher: no embeddings of \d+ of the \d+ training captions, such as '"
    with pytest.raises(UserError, match=message):
        pretrain(other, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    with pytest.raises(UserError, match=message):
        forecast(other, new_checkpoint(other, ALONE), ALONE)


# --- The recipe


def test_path_is_relative_to_the_recipe_or_in_the_cache(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    for path, expected in (("beside", str(tmp_path / "beside")), ("cache:teacher", "/somewhere/grr-coca/teacher")):
        save_recipe(replace(recipe, teacher=replace(recipe.teacher, path=path)), tmp_path / "recipe.yaml")
        assert load_recipe(tmp_path / "recipe.yaml").teacher == replace(recipe.teacher, path=expected)


# --- The batches


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_every_batch_gets_the_embeddings_of_its_captions(recipe, micro_batch_size):
    recipe = replace(recipe, data=replace(recipe.data, micro_batch_size=micro_batch_size))
    start, source = new_checkpoint(recipe, ALONE), training_sources(recipe)[0]
    caption_of = {stable_id(caption): caption for caption in captions_of(recipe)}
    for micro_batches in training_batches(recipe, start, source, ALONE):
        for batch in micro_batches:
            expected = embeddings([caption_of[number] for number in batch.caption_ids.tolist()])
            assert torch.allclose(batch.teacher, expected, atol=1e-3)


# --- Whole runs


@pytest.fixture(scope="module")
def plain(recipe, tmp_path_factory):
    """The weights of a short run with the teacher."""
    return weights(pretrain(recipe, tmp_path_factory.mktemp("plain") / "run"))


@pytest.mark.ci
def test_loss_of_the_teacher_is_logged_and_falls(recipe, tmp_path):
    pretrain(replace(recipe, schedule=replace(recipe.schedule, steps=20)), tmp_path / "run")
    first, *_, last = (row["teacher"] for row in read_metrics(tmp_path / "run", "train"))
    assert last < 0.9 * first
    assert "teacher" not in read_metrics(tmp_path / "run", "val")[0], "it is for training alone"


@pytest.mark.ci
def test_no_teacher_loss_is_trained_or_logged_without_a_teacher(recipe, plain, tmp_path):
    without = weights(pretrain(replace(recipe, teacher=None), tmp_path / "run"))
    assert len(differing(plain, without)) > len(without) // 2
    assert "teacher" not in read_metrics(tmp_path / "run", "train")[0]


def test_trainer_gets_the_values_of_the_recipe(recipe):
    recipe = replace(recipe, teacher=replace(recipe.teacher, weight=0.7, temperature=0.3))
    assert recipe.loss_weights == LossWeights(1.0, 2.0, teacher=0.7, teacher_temperature=0.3)
    assert replace(recipe, teacher=None).loss_weights == LossWeights()


def test_dry_run_trains_with_a_teacher(recipe):
    text = forecast(recipe, new_checkpoint(recipe, ALONE), ALONE)
    assert "first loss" in text


@pytest.mark.ci
def test_resume_rejects_another_teacher(recipe, tmp_path):
    mine = taught(recipe, tmp_path / "teacher")
    pretrain(replace(mine, schedule=replace(mine.schedule, steps=2)), tmp_path / "run")
    point = tmp_path / "run" / "checkpoints" / "step-000000002"
    captions = captions_of(recipe)
    write_teacher(tmp_path / "teacher", captions, embeddings(captions[::-1]))
    with pytest.raises(
        UserError, match=r"teacher: data: teacher of the run: its texts or embeddings have changed since"
    ):
        train(mine, from_pretrained(point), tmp_path / "run", ALONE, silent, point)
