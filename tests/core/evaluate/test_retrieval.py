"""Retrieval over a whole split against a search of one query at a time, and by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import query_ranks

from grr_coca.evaluate import split as retrieval
from grr_coca.evaluate.split import Gallery, make_gallery, retrieve


def unit(rows: int, width: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def naive(gallery: Gallery, right: str) -> tuple[list[int], list[int]]:
    """Ranks of both directions, one query at a time."""
    similarity = gallery.image.double() @ gallery.text.double().T
    num_images, num_texts = similarity.shape
    says = [
        {int(gallery.caption_ids[t]) for t in range(num_texts) if gallery.image_of[t] == i} for i in range(num_images)
    ]

    def is_right(image: int, text: int) -> bool:
        return bool(gallery.image_of[text] == image) or (
            right == "equal" and int(gallery.caption_ids[text]) in says[image]
        )

    def rank(scores, answers) -> int:
        best = max(score for score, answer in zip(scores, answers, strict=True) if answer)
        return sum(score >= best - 1e-6 and not answer for score, answer in zip(scores, answers, strict=True))

    texts = [rank(similarity[:, t].tolist(), [is_right(i, t) for i in range(num_images)]) for t in range(num_texts)]
    images = [rank(similarity[i].tolist(), [is_right(i, t) for t in range(num_texts)]) for i in range(num_images)]
    return texts, images


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=20),
    st.sampled_from(["own", "equal"]),
    st.sampled_from([1, 40, 10**6]),
    st.integers(0, 99),
)
def test_blocks_of_any_size_equal_single_queries(pairs, right, at_once, seed):
    image_ids, caption_ids = (torch.tensor(column) for column in zip(*pairs, strict=True))
    by_id = unit(6, seed=seed)
    gallery = make_gallery(by_id[image_ids], unit(len(pairs), seed=seed + 1), caption_ids, image_ids)
    before, retrieval.SIMILARITIES_AT_ONCE = retrieval.SIMILARITIES_AT_ONCE, at_once
    try:
        found = retrieve(gallery, right)
    finally:
        retrieval.SIMILARITIES_AT_ONCE = before
    assert (found.text_to_image.rank.tolist(), found.image_to_text.rank.tolist()) == naive(gallery, right)
    assert found.text_to_image.num_right.sum() == found.image_to_text.num_right.sum(), "right is right both ways"
    if right == "own":
        assert found.text_to_image.num_right.tolist() == [1] * len(pairs)


def test_image_with_five_captions_is_one_image():
    image_ids = torch.tensor([7, 7, 7, 7, 7, 3, 3])
    gallery = make_gallery(unit(7), unit(7, seed=1), torch.arange(7), image_ids)
    assert torch.equal(gallery.image, unit(7)[[0, 5]])
    assert gallery.image_of.tolist() == [0, 0, 0, 0, 0, 1, 1]
    found = retrieve(gallery, "own")
    assert found.image_to_text.num_right.tolist() == [5, 2]
    assert found.text_to_image.num_candidates == 2
    assert found.image_to_text.num_candidates == 7


def test_any_caption_of_an_image_is_a_hit():
    image = torch.eye(2)
    text = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # the first caption of image 0 is a bad one
    found = retrieve(Gallery(image, text, torch.tensor([0, 0, 1]), torch.arange(3)), "own")
    assert found.image_to_text.recall(1) == 0.5  # image 1: its caption ties with that of image 0, which counts against
    assert found.image_to_text.rank.tolist() == [0, 1]
    assert found.text_to_image.rank.tolist() == [1, 0, 0]


def test_equal_captions_are_correct_only_on_request():
    gallery = Gallery(torch.eye(2), torch.eye(2).flip(0), torch.arange(2), torch.tensor([4, 4]))
    assert retrieve(gallery, "equal").text_to_image.recall(1) == 1.0
    assert retrieve(gallery, "own").text_to_image.recall(1) == 0.0


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_collapsed_model_finds_nothing(monkeypatch, value, at_once):
    monkeypatch.setattr(retrieval, "SIMILARITIES_AT_ONCE", at_once)
    same = torch.full((9, 4), value)
    found = retrieve(Gallery(same, same, torch.arange(9), torch.arange(9)), "own")
    assert found.text_to_image.rank.tolist() == found.image_to_text.rank.tolist() == [8] * 9
    assert found.text_to_image.recall(5) == 0.0


def test_rounding_breaks_no_tie():
    image, text = torch.tensor([[1.0], [1.0 - 1e-7]]), torch.tensor([[1.0]])
    assert (image @ text.T)[0] > (image @ text.T)[1]
    found = retrieve(Gallery(image, text, torch.tensor([0]), torch.tensor([0])), "own")
    assert found.text_to_image.rank.tolist() == [1]


def test_median_rank_is_one_at_best():
    perfect = retrieve(Gallery(torch.eye(4), torch.eye(4), torch.arange(4), torch.arange(4)), "own")
    assert perfect.text_to_image.median() == perfect.image_to_text.median() == 1.0
    assert perfect.text_to_image.chance(1) == 0.25


# --- Recall and chance, worked out by hand

SIMILARITY = torch.tensor(
    [
        [0.9, 0.1, 0.2, 0.3],  # right at once
        [0.8, 0.7, 0.1, 0.0],  # right at the second
        [0.4, 0.3, 0.1, 0.2],  # right at the last
    ]
)
DIAGONAL = torch.eye(3, 4, dtype=torch.bool)


def recall_at_k(similarity, relevant, k):
    return query_ranks(similarity, relevant).recall(k)


def chance(relevant, k):
    """Of an order in which nothing is known of the candidates."""
    return query_ranks(torch.zeros(relevant.shape), relevant).chance(k)


@pytest.mark.parametrize(("k", "recall"), [(1, 1 / 3), (2, 2 / 3), (3, 2 / 3), (4, 1.0), (10, 1.0)])
def test_recall_is_the_share_of_queries_with_a_hit_among_k(k, recall):
    assert recall_at_k(SIMILARITY, DIAGONAL, k) == pytest.approx(recall)


@given(st.integers(1, 6), st.data())
def test_chance_is_the_mean_over_all_orders(num_candidates, draw):
    right = draw.draw(st.integers(1, num_candidates))
    k = draw.draw(st.integers(1, num_candidates))
    relevant = torch.arange(num_candidates)[None] < right
    orders = list(itertools.permutations(range(num_candidates)))
    hits = sum(any(candidate < right for candidate in order[:k]) for order in orders)
    assert chance(relevant, k) == pytest.approx(hits / math.factorial(num_candidates))
