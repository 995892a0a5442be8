"""Words of captions and their weights."""

import math

import numpy as np
import pytest

from grr_coca.infer.adapted.words import Vocabulary, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red_square, 3D!", ["a", "red", "square", "3d"]),
        ("Ein Bär", ["ein", "bär"]),
        ("Ba\N{COMBINING DIAERESIS}r", ["bär"]),
        ("ﬁsh x²", ["fish", "x2"]),
        ("ΟΔΟΣ", ["οδος"]),
        ("हिन्दी", ["हिन्दी"]),
        ("猫の絵", ["猫", "の", "絵", "猫の", "の絵"]),
        ("red猫", ["red", "猫"]),
        (" ,;", []),
    ],
)
def test_words_of(text, words):
    expected = [word.replace("οδος", "οδο\N{GREEK SMALL LETTER FINAL SIGMA}") for word in words]
    assert split_words(text) == expected


def test_vocabulary_keeps_the_most_frequent_words_in_order():
    vocabulary = Vocabulary.from_captions(["b a", "a c", "a b"], 2)
    assert vocabulary.words == ("a", "b")
    np.testing.assert_allclose(vocabulary.rarities, [math.log(4 / 4) + 1, math.log(4 / 3) + 1], rtol=1e-6)


def test_weights_have_length_one_and_ignore_unknown_words():
    vocabulary = Vocabulary.from_captions(["a b", "c"], 10)
    weighed = vocabulary.weigh(["a a b z", "z", "c"])
    assert weighed.ends.tolist() == [2, 2, 3]
    np.testing.assert_allclose(weighed.weights[:2], np.array([2, 1]) / math.sqrt(5), rtol=1e-6)
    assert vocabulary.knows("a z")
    assert not vocabulary.knows("z")


def test_sparse_products_equal_dense_ones():
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(list("abcdefg"), size)) for size in (3, 1, 5, 2)] + ["zz"]
    vocabulary = Vocabulary.from_captions(texts[:4], 10)
    weighed = vocabulary.weigh(texts)
    matrix = np.zeros((5, len(vocabulary)), np.float32)
    for row in range(5):
        begin = weighed.ends[row - 1] if row else 0
        matrix[row, weighed.ids[begin : weighed.ends[row]]] = weighed.weights[begin : weighed.ends[row]]
    rows, columns = random.standard_normal((len(vocabulary), 3)), random.standard_normal((5, 3))
    np.testing.assert_allclose(weighed.times(rows), matrix @ rows, atol=1e-5)
    np.testing.assert_allclose(weighed.transposed(len(vocabulary)).times(columns), matrix.T @ columns, atol=1e-5)
