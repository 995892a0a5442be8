"""Several words for one picture."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from support import real_pairs

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError
from grr_coca.data.isolated import decode_image
from grr_coca.infer.generate import GREEDY, Caption, GenerationOptions
from grr_coca.infer.load import load
from grr_coca.infer.tags import (
    TAG_FEATURES,
    Tagger,
    TagModel,
    read_tag_model,
    read_tag_vectors,
    to_singular,
    with_beams,
)
from grr_coca.model.checkpoint_files import FOLDER
from grr_coca_search.index import Index

NUMBERS = TagModel(
    words=("arrow", "arrows", "bin", "waste"),
    counts=(100, 3, 50, 20),
    tag_counts=(10, 3, 40, 20),
    weights=(10.0, 0.0, 0.0, 1.0, -1.0, 0.0),
    fitted_on="nothing",
)
VECTORS = np.array([[1.0, 0.0], [0.98, 0.2], [0.0, 1.0], [0.3, 0.95]])
DRAWINGS = [decode_image(pair.image, pair.key) for pair in real_pairs(5)]
BIN = Caption("Trash bin", (1, 2), (math.log(0.5), math.log(0.8)))
ARROW = Caption("arrow up", (3, 4), (math.log(0.1),))


def tags(numbers=NUMBERS, captions=(BIN, ARROW), embedding=(0.1, 0.99), count=5):
    return Tagger(numbers, VECTORS).tags(np.array([embedding]), [captions], count)[0]


def test_tags_come_from_captions_and_vocabulary_sorted():
    found = tags()
    assert [tag.text for tag in found][:2] == ["bin", "waste"]
    assert {"trash bin", "trash"} <= {tag.text for tag in found}
    probabilities = [tag.probability for tag in found]
    assert probabilities == sorted(probabilities, reverse=True)


def test_probability_is_the_logistic_function_of_features():
    ((words, evidence),) = Tagger(NUMBERS, VECTORS).candidates(np.array([[0.1, 0.99]]), [(BIN, ARROW)])
    by_word = dict(zip(words, evidence, strict=True))
    assert by_word["bin"] == pytest.approx([0.99, math.log(51), math.log(41), math.log(0.4 + 1e-3), 0, 1])
    assert by_word["waste"][3:].tolist() == pytest.approx([math.log(1e-3), 0, 1])
    assert by_word["trash"][4] == 1, "it is not in the vocabulary"
    of_bin = next(tag.probability for tag in tags() if tag.text == "bin")
    assert of_bin == pytest.approx(1 / (1 + math.exp(-(9.9 + math.log(0.401)))))


def test_two_captions_with_a_word_count_together():
    ((words, evidence),) = Tagger(NUMBERS, VECTORS).candidates(np.array([[0.1, 0.99]]), [(BIN, BIN)])
    assert evidence[words.index("trash"), 3] == pytest.approx(math.log(0.8 + 1e-3))


@pytest.mark.parametrize("least", [0.2, 0.5, 0.999])
def test_less_likely_words_are_omitted(least):
    generator = np.random.default_rng(0)
    words = tuple(f"word{number}" for number in range(300))
    numbers = replace(NUMBERS, words=words, counts=(5,) * 300, tag_counts=(2,) * 300)
    tagger = Tagger(replace(numbers, weights=(10.0, 0.5, 0.5, 1.0, -1.0, 3.0)), generator.normal(size=(300, 8)))
    embeddings, captions = generator.normal(size=(9, 8)), [(BIN, ARROW)] * 8 + [()]
    found = tagger.tags(embeddings, captions, 5, least)
    everything = tagger.tags(embeddings, captions, 5)
    assert found == [tuple(tag for tag in tags if tag.probability >= least) for tags in everything]
    assert any(found)


def test_excludes_words_without_meaning():
    found = {tag.text for tag in tags(captions=(Caption("cat with the hat", (1,), (-0.1,)),), count=20)}
    assert {"cat", "hat", "cat with the hat"} <= found
    assert found.isdisjoint({"with", "the"})


def test_word_and_its_plural_are_one():
    found = tags(embedding=(1.0, 0.0), captions=())
    assert [tag.text for tag in found if tag.text.startswith("arrow")] == ["arrow"]
    assert [to_singular(text) for text in ("arrows up", "gas", "bus stop")] == ["arrow up", "gas", "bus stop"]


def test_returns_the_requested_number():
    assert [len(tags(count=count)) for count in (1, 3)] == [1, 3]


def test_words_come_from_beams():
    assert (with_beams(GREEDY).num_beams, with_beams(GREEDY).num_captions) == (5, 5)
    assert with_beams(GenerationOptions(num_beams=3)).num_captions == 3
    with pytest.raises(UserError, match="tags and temperature cannot be combined"):
        with_beams(GenerationOptions(temperature=1.0))


@pytest.mark.parametrize(
    "change", [{"counts": (1,)}, {"words": (), "counts": (), "tag_counts": ()}, {"weights": (1.0,)}]
)
def test_corrupt_file_is_named(tmp_path, change):
    (tmp_path / "tags.json").write_text(json.dumps({**to_dict(NUMBERS), **change}))
    with pytest.raises(UserError, match=r"tags\.json"):
        read_tag_model(tmp_path)


def test_model_without_tags_raises(model, files):
    with pytest.raises(UserError, match="this model has no tags"):
        model.tag(files)


@pytest.fixture(scope="module")
def icons():
    return load("icons")


def test_model_that_ships_gives_tags_and_one_caption(icons):
    several = icons.tag(DRAWINGS[:2])
    assert [len(found) for found in several] == [5, 5]
    assert all(0 < tag.probability < 1 for found in several for tag in found)
    alone = icons.tag(DRAWINGS[0], num_tags=2)
    assert [tag.text for tag in alone] == [tag.text for tag in several[0][:2]]
    (described,) = icons.describe_many(DRAWINGS[:1], num_tags=2)
    assert [tag.text for tag in described.tags] == [tag.text for tag in alone]
    assert len(described.captions) == len(described.caption_confidences) == 1
    assert described.captions[0].text == icons.caption(DRAWINGS[0], num_beams=5)
    assert icons.describe_many(DRAWINGS[:1])[0].tags == ()


@pytest.mark.parametrize("count", [0, 21])
def test_rejects_a_number_out_of_range(icons, count):
    with pytest.raises(UserError, match=f"num_tags must be from 1 to 20, got {count}"):
        icons.tag(DRAWINGS[0], num_tags=count)


@pytest.mark.ci
def test_index_keeps_likely_words_which_filters_ask_for(tmp_path, icons):
    drawings = Path(__file__).parents[3] / "docs" / "drawings"
    with Index.open(tmp_path / "index", "icons", create=True) as index:
        index.add(drawings)
        (guitar,) = (entry for entry, _ in index.store.everything() if entry.title == "guitar")
        described = icons.describe(drawings / "guitar.webp")
        likely = icons.tagger.tags(described.embedding[None], [described.captions], 5)[0]
        assert guitar.tags == tuple(tag.text for tag in likely if tag.probability >= 0.2)
        assert "guitar" in guitar.tags
        assert [hit.entry.title for hit in index.search("music", where="tags = 'guitar'")] == ["guitar"]


def test_stored_vectors_equal_computed_ones(icons):
    numbers = read_tag_model(FOLDER / "icons")
    stored = read_tag_vectors(FOLDER / "icons", len(numbers.words))
    assert np.abs(stored[::20] - icons.embed_texts(numbers.words[::20])).max() < 3e-4, "half precision"


@pytest.mark.ci
def test_stored_vectors_are_not_used_after_a_change_of_weights():
    model = load("icons", engine="torch")
    before = model.tag(DRAWINGS[0])
    with torch.no_grad():
        model.checkpoint.model.text_proj.weight.mul_(-1)  # captions stay, cosines change their sign
    model.refresh()
    assert [tag.text for tag in model.tag(DRAWINGS[0])] != [tag.text for tag in before]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cut", "tags.safetensors: corrupt, or cannot be read"),
        (save({"vectors": np.zeros((2, 4), np.float16)}), r"the shape is \(2, 4\), but tags.json has 3 words"),
        (save({"words": np.zeros((3, 4), np.float16)}), "tags.safetensors: corrupt, or cannot be read"),
    ],
)
def test_unfit_stored_vectors_are_rejected(tmp_path, content, message):
    (tmp_path / "tags.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_tag_vectors(tmp_path, 3)


def test_numbers_that_ship_favour_words_near_the_image():
    numbers = read_tag_model(FOLDER / "icons")
    assert len(numbers.words) > 1000
    weights = dict(zip(TAG_FEATURES, numbers.weights, strict=True))
    assert weights["cosine"] > 0
    assert weights["beams"] > 0
