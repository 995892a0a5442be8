"""The measure of search for icons, on rankings worked out by hand."""

import math

import numpy as np
import pytest
from PIL import Image

from icon_search import Icon, LexicalIndex, Query, all_queries, fuse, hidden_queries, ndcg

SQUARE = Image.new("RGB", (8, 8))
ICONS = [
    Icon("piggy bank", frozenset({"savings", "bank account", "money"}), SQUARE),
    Icon("coins", frozenset({"money", "savings"}), SQUARE),
    Icon("money bag", frozenset({"money"}), SQUARE),
]


def test_ndcg_matches_its_definition():
    query = Query("a", frozenset({3, 5}))
    best = 1 + 1 / math.log2(3)
    assert ndcg([3, 5, 1], query) == pytest.approx(1)
    assert ndcg([1, 3, 5], query) == pytest.approx((1 / math.log2(3) + 1 / 2) / best)
    assert ndcg([1, 2], query) == 0
    assert ndcg([*range(10, 20), 3], query) == 0, "the eleventh does not count"
    assert ndcg([7, 3, 5], Query("a", frozenset({3, 5}), frozenset({7}))) == pytest.approx(1)


def test_queries_are_tags_with_a_table_for_names_without_hints():
    assert {query.text: query.right for query in all_queries(ICONS)} == {
        "savings": {0, 1},
        "bank account": {0},
        "money": {0, 1, 2},
    }
    hidden = {query.text: (query.right, query.left_out) for query in hidden_queries(ICONS)}
    assert hidden == {"savings": ({0, 1}, set()), "money": ({0, 1}, {2})}


def test_lexical_search_matches_only_stems():
    index = LexicalIndex(["paint brush", "painting", "brush", "bell"])
    assert list(index.search("paint")) == [1, 0]
    assert next(iter(index.search("paint brush"))) == 0
    assert index.search("bell", 5)[3] > index.search("bell")[3]
    assert index.search('notification "') == {}


def test_fusion_prefers_hits_of_both_searches():
    """A picture that stands out, and whose name matches; then one of which only the name matches very well."""
    cosines = [0.3, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0, -0.1]
    vectors = np.stack([[cosine, np.sqrt(1 - cosine**2)] for cosine in cosines])
    assert fuse(np.eye(2)[0], vectors, {1: 5.0, 2: 20.0})[:3] == [2, 1, 0]
    assert fuse(np.eye(2)[0], vectors, {1: 5.0, 2: 1.0})[:3] == [1, 0, 2]
