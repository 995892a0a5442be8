"""Caption metrics: by hand, and against pycocoevalcap."""

import math

import numpy as np
import pytest
from caption_sets import SCORES, SETS, CaptionSet, reference_scores
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grr_coca.common.errors import UserError
from grr_coca.evaluate.caption_metrics import (
    CaptionScores,
    bleu,
    bleu_statistics,
    cider,
    lcs_length,
    rouge_l,
    score_captions,
)
from grr_coca.evaluate.ptb import tokenize

NAMES = ["CIDEr", "CIDEr-D", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]
words = st.lists(
    st.sampled_from(["a", "cat", "dog", "on", "red", "the", "two", "U.S.", "isn't", "-", "!!", "1/2"]), max_size=9
).map(" ".join)
sets = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=4)), min_size=1, max_size=8)


def scored(caption_sets) -> CaptionScores:
    return score_captions([s[0] for s in caption_sets], [s[1] for s in caption_sets])


def per_caption(scores: CaptionScores) -> np.ndarray:
    return np.column_stack([scores.cider, scores.cider_d, scores.bleu(), scores.rouge_l])


# --- Against pycocoevalcap


@pytest.mark.parametrize("name", [pytest.param("real", marks=pytest.mark.ci), "made"])
def test_recorded_scores_of_2500_sets_are_met(name):
    recorded = np.load(SCORES)
    scores = scored(SETS[name]())
    assert list(scores.corpus()) == NAMES
    assert np.abs(per_caption(scores) - recorded[f"{name}_captions"]).max() < 1e-6
    assert np.abs(np.array(list(scores.corpus().values())) - recorded[f"{name}_corpus"]).max() < 1e-6


@given(sets)
@settings(max_examples=150)
def test_matches_pycocoevalcap_for_any_captions(caption_sets):
    pytest.importorskip("pycocoevalcap")
    assume(any(tokenize(reference) for _, references in caption_sets for reference in references))  # theirs stops there
    expected = reference_scores([CaptionSet(*s) for s in caption_sets])
    scores = scored(caption_sets)
    assert np.abs(per_caption(scores) - expected["captions"]).max() < 1e-6
    assert np.abs(np.array(list(scores.corpus().values())) - expected["corpus"]).max() < 1e-6


# --- By hand


def test_caption_that_is_its_reference_has_full_marks():
    captions = [f"a {animal} sits on the mat" for animal in ("cat", "dog", "bird", "fox")]
    corpus = score_captions(captions, [[caption] for caption in captions]).corpus()
    assert corpus["BLEU-4"] == pytest.approx(1.0)
    assert corpus["ROUGE-L"] == pytest.approx(1.0)
    assert corpus["CIDEr"] == pytest.approx(10.0)
    assert corpus["CIDEr-D"] == pytest.approx(10.0)


def test_bleu_clips_repeated_ngrams():
    statistics = bleu_statistics(
        [["the", "the", "the", "the"]], [[["the", "cat", "is", "on", "the", "mat"], ["there", "is"]]]
    )
    assert statistics[0, 0] == 2  # "the" twice in the first reference
    assert statistics[0, -2:].tolist() == [4, 2]


def test_bleu_takes_the_shorter_of_two_equally_close_references():
    statistics = bleu_statistics([["a", "b", "c", "d"]], [[["a", "b"], ["a", "b", "c", "d", "e", "f"]]])
    assert statistics[0, -1] == 2


def test_brevity_penalty_reduces_bleu_of_a_short_caption():
    sums = bleu_statistics([["a", "b"]], [[["a", "b", "c", "d"]]]).sum(axis=0)
    assert bleu(sums)[0] == pytest.approx(math.exp(1 - 4 / 2))


def test_bleu_of_a_corpus_is_not_the_mean_over_captions():
    scores = score_captions(["a b c d", "x"], [["a b c d"], ["y z"]])
    assert scores.corpus()["BLEU-1"] == pytest.approx(4 / 5 * math.exp(1 - 6 / 5))
    assert scores.bleu()[:, 0].mean() == pytest.approx(0.5)


def test_rouge_is_f_of_best_precision_and_best_recall():
    assert lcs_length(["a", "b", "c", "d", "e"], ["x", "a", "c", "y", "e"]) == 3
    precision, recall = 1.0, 2 / 3
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l([["a", "b"]], [[["a", "c", "b"]]])[0] == pytest.approx(expected)


def test_cider_is_the_cosine_of_tf_idf_by_hand():
    hypotheses = [["red", "red"], ["dog"]]
    references = [[["red", "cat"]], [["dog"]]]
    # idf is log 2 for every word; order 1: (2, 0)·(1, 1) / (2·√2); order 2 shares nothing, 3 and 4 are empty.
    scores = cider(hypotheses, references)
    assert scores.cider[0] == pytest.approx(10 * (2 / (2 * math.sqrt(2))) / 4)
    # Clipped: the second "red" is no second match.
    assert scores.cider_d[0] == pytest.approx(10 * (1 / (2 * math.sqrt(2))) / 4)


def test_cider_d_takes_off_for_length_and_cider_does_not():
    long = [f"w{i}" for i in range(12)]
    scores = cider([long[:6], ["z"]], [[long], [["z"]]])
    assert scores.cider_d[0] == pytest.approx(scores.cider[0] * math.exp(-(6**2) / (2 * 6**2)))


def test_words_that_every_image_has_count_nothing():
    scores = score_captions(["a", "a"], [["a"], ["a"]])
    assert scores.cider.tolist() == [0.0, 0.0]


def test_order_of_references_changes_nothing():
    first = score_captions(["a red cat", "x"], [["a cat", "the red cat sat"], ["x y"]])
    second = score_captions(["a red cat", "x"], [["the red cat sat", "a cat"], ["x y"]])
    assert first.corpus() == pytest.approx(second.corpus())


def test_rejects_an_empty_list():
    with pytest.raises(UserError, match="no caption"):
        score_captions([], [])


def test_image_without_reference_is_named():
    with pytest.raises(UserError, match="image 1 has no reference"):
        score_captions(["a", "b"], [["a"], []])


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        (["a cat"], ["a cat"], "references of each image must be a list of texts, got the text 'a cat'"),
        ("a cat", [["a cat"]] * 5, "captions must be a list of texts, got the text 'a cat'"),
        (["a cat"], [["a cat"], ["a dog"]], "expected one list .*, got 1 caption and 2 lists of references; pass"),
    ],
)
def test_rejects_texts_that_are_not_lists(hypotheses, references, message):
    with pytest.raises(UserError, match=message):
        score_captions(hypotheses, references)
