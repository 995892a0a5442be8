"""Targets of captions in few directions, against dense matrices."""

import numpy as np
import pytest

from grr_coca.adapt import targets
from grr_coca.adapt.targets import Captions, TargetSpace
from grr_coca.infer.adapted.words import Vocabulary

TEXTS = ("red square", "blue square", "red circle", "a large blue circle", "green triangle", "green")


@pytest.fixture(scope="module")
def captions():
    random = np.random.default_rng(1)
    embeddings = random.standard_normal((6, 5)).astype(np.float32)
    return Captions(TEXTS, embeddings, np.array([0, 1, 2, 3, 3, 4, 5]), np.array([0, 1, 2, 3, 4, 5, 0]))


def dense(captions, vocabulary, text_weight):
    """The targets of images by their definition."""
    words = np.zeros((len(captions.texts), len(vocabulary)))
    for row, text in zip(words, captions.texts, strict=True):
        for word in text.split():
            row[vocabulary.words.index(word)] += vocabulary.rarities[vocabulary.words.index(word)]
        row /= np.linalg.norm(row)
    centred = captions.embeddings - captions.embeddings[captions.text_ids].mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    rows = np.concatenate([words, np.sqrt(text_weight) * centred], axis=1) / np.sqrt(1 + text_weight)
    return np.stack([rows[captions.text_ids[captions.owners == image]].mean(axis=0) for image in range(6)])


def test_all_directions_keep_every_dot_product(captions):
    vocabulary = Vocabulary.from_captions([captions.texts[place] for place in captions.text_ids], 100)
    space = TargetSpace(captions, vocabulary, 0.3)
    expected = dense(captions, vocabulary, 0.3)
    expected = expected - expected.mean(axis=0)
    np.testing.assert_allclose(space.rows @ space.rows.T, expected @ expected.T, atol=1e-5)
    np.testing.assert_allclose(space.directions.T @ space.directions, np.eye(space.directions.shape[1]), atol=1e-5)


def test_randomized_directions_equal_all_directions(captions, monkeypatch):
    vocabulary = Vocabulary.from_captions([captions.texts[place] for place in captions.text_ids], 100)
    exact = TargetSpace(captions, vocabulary, 0.3)
    monkeypatch.setattr(targets, "_DENSE", 0)
    monkeypatch.setattr(targets, "MAX_DIRECTIONS", 8)
    found = TargetSpace(captions, vocabulary, 0.3)
    np.testing.assert_allclose(found.rows @ found.rows.T, exact.rows @ exact.rows.T, atol=1e-5)


def test_without_words_equals_a_smaller_vocabulary(captions):
    vocabulary = Vocabulary.from_captions([captions.texts[place] for place in captions.text_ids], 100)
    space = TargetSpace(captions, vocabulary, 0.3)
    known = np.array([word != "red" for word in vocabulary.words])
    found = space.without_words(known, np.array([0, 1]))
    all_words = space.project(space.directions)[[0, 1]]
    np.testing.assert_allclose(found[1], all_words[1], atol=1e-6)
    # "red square" is then "square" alone, with the whole length of the words.
    alone = np.zeros(len(vocabulary))
    alone[vocabulary.words.index("square")] = 1
    target = np.concatenate([alone, np.sqrt(0.3) * space.plain(np.array([0]))[0]]) / np.sqrt(1.3)
    np.testing.assert_allclose(found[0], target @ space.directions, atol=1e-5)


def test_words_known_to_some_images(captions):
    vocabulary = Vocabulary.from_captions(list(captions.texts), 100)
    space = TargetSpace(captions, vocabulary, 0.3)
    known = space.words_in_captions_of(np.array([0, 2]))
    assert [word for word, one in zip(vocabulary.words, known, strict=True) if one] == ["circle", "red", "square"]
