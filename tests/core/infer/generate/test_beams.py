"""Beam search against plain Python, on a decoder whose next token depends on the whole past."""

import itertools
import math
import random
from collections.abc import Iterator

import numpy as np
import pytest

from grr_coca.common.errors import UserError
from grr_coca.infer.generate.beams import BeamSearch
from grr_coca.infer.generate.captions import ArrayLogits
from grr_coca.infer.generate.options import GenerationOptions

BOS, EOS, VOCAB = 0, 1, 5
Past = tuple[int, ...]
Found = list[tuple[Past, float]]


def log_probs_after(image: int, past: Past, vocab: int = VOCAB) -> np.ndarray:
    """A distribution that is a function of image and past alone."""
    chance = random.Random(repr((image, past)))
    logits = np.array([chance.gauss(0, 1.5) for _ in range(vocab)])
    return (logits - np.log(np.exp(logits).sum())).astype(np.float32)


class TableDecoder:
    """Knows of each row its image and its past."""

    def __init__(self, images: list[int], vocab: int = VOCAB) -> None:
        self.images, self.vocab = images, vocab
        self.pasts: list[Past] = [()] * len(images)
        self.num_steps = 0

    def step(self, token_ids: np.ndarray) -> ArrayLogits:
        self.num_steps += 1
        self.pasts = [(*past, *new) for past, new in zip(self.pasts, token_ids.tolist(), strict=True)]
        rows = zip(self.images, self.pasts, strict=True)
        return ArrayLogits(np.stack([log_probs_after(image, past, self.vocab) for image, past in rows]) + 3)

    def reorder(self, rows: np.ndarray) -> None:
        images = [self.images[row] for row in rows]
        assert images == sorted(images), "the rows of an image stay side by side, and images in their order"
        self.images, self.pasts = images, [self.pasts[row] for row in rows]


def search(images: list[int], max_length: int, vocab: int = VOCAB, **options: object) -> list[Found]:
    options = {"num_captions": options.get("num_beams"), **options}
    decoder = TableDecoder(images, vocab)
    found = BeamSearch(decoder, prompts(images), GenerationOptions(**options), max_length, EOS).run()
    return [[(h.token_ids, h.score) for h in hypotheses] for hypotheses in found]


def prompts(images: list[int]) -> np.ndarray:
    return np.array([[BOS, 3]] * len(images))


def reference(image: int, max_length: int, options: GenerationOptions, stop: bool = True) -> Found:
    """One image, one list of beams, everything ranked by `sorted`."""
    size, alive, pool = options.num_beams, [((), 0.0)], []

    def collect(ids: Past, score: float) -> None:
        pool.append((ids, score / len(ids) ** options.length_penalty))
        pool.sort(key=lambda found: -found[1])
        del pool[size:]

    for length in range(1, max_length + 1):
        ranked = [
            (score + log_prob, (*ids, token))
            for ids, score in alive
            for token, log_prob in enumerate(log_probs_after(image, (BOS, 3, *ids)).tolist())
        ]
        ranked.sort(reverse=True)
        for score, ids in ranked[:size]:
            if ids[-1] == EOS:
                collect(ids, score)
        alive = [(ids, score) for score, ids in ranked if ids[-1] != EOS][:size]
        if length == max_length:
            for ids, score in alive:
                collect(ids, score)
        elif stop and len(pool) == size:
            reach = [score / at**options.length_penalty for _, score in alive for at in (length + 1, max_length)]
            if max(reach, default=-math.inf) <= pool[-1][1]:
                break
    return pool


def assert_same(found: Found, expected: Found) -> None:
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


def all_options() -> Iterator[dict]:
    for num_beams, length_penalty in itertools.product((2, 3, 6), (0.0, 1.0, 2.5, -1.0)):
        yield {"num_beams": num_beams, "length_penalty": length_penalty}


@pytest.mark.parametrize("options", all_options(), ids=lambda options: "-".join(map(str, options.values())))
def test_beam_search_is_the_plain_one_for_each_image(options):
    images = list(range(12))
    for image, found in zip(images, search(images, 7, **options), strict=True):
        assert_same(found, reference(image, 7, GenerationOptions(**options)))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5])
def test_stopping_early_changes_nothing(length_penalty):
    options = GenerationOptions(num_beams=3, length_penalty=length_penalty)
    for image in range(12):
        (found,) = search([image], 9, num_beams=3, length_penalty=length_penalty)
        assert_same(found, reference(image, 9, options, stop=False))


def test_with_beams_for_all_captions_the_best_of_all_is_found():
    words = [token for token in range(VOCAB) if token != EOS]
    for image in range(5):
        scores = {}
        for length in range(4):
            for ids in itertools.product(words, repeat=length):
                past, summed = (BOS, 3), 0.0
                for token in ids:
                    summed += float(log_probs_after(image, past)[token])
                    past = (*past, token)
                if length == 3:
                    scores[ids] = summed / 3
                else:
                    scores[(*ids, EOS)] = (summed + float(log_probs_after(image, past)[EOS])) / (length + 1)
        best = sorted(scores, key=lambda ids: -scores[ids])[:20]
        (found,) = search([image], 3, num_beams=100, num_captions=20)
        assert [ids for ids, _ in found] == best


def test_images_stop_separately_when_nothing_can_improve():
    images = list(range(12))
    decoder = TableDecoder(images)
    options = GenerationOptions(num_beams=2, length_penalty=0.0)
    BeamSearch(decoder, prompts(images), options, 30, EOS).run()
    assert decoder.num_steps < 30
    assert len(decoder.images) < 12 * 2


def test_rules_do_not_change_log_probabilities_of_beams():
    options = GenerationOptions(num_beams=3, num_captions=3, repetition_penalty=1.5, min_length=4)
    found = BeamSearch(TableDecoder([4]), prompts([4]), options, 6, EOS).run()
    for ids, log_probs, _ in found[0]:
        expected = [float(log_probs_after(4, (BOS, 3, *ids[:i]))[token]) for i, token in enumerate(ids)]
        assert list(log_probs) == pytest.approx(expected, abs=1e-5)
        assert EOS not in ids[:4]


def test_nan_is_distinguished_from_rules_without_a_token():
    class Diverged(TableDecoder):
        def step(self, token_ids: np.ndarray) -> ArrayLogits:
            values, ids = super().step(token_ids).largest(VOCAB)
            logits = np.take_along_axis(values, ids.argsort(axis=1), axis=1)
            logits[np.array(self.images) == 1] = np.nan
            return ArrayLogits(logits)

    options = GenerationOptions(num_beams=2, num_captions=2, min_length=4)
    with pytest.raises(UserError, match="computes NaN"):
        BeamSearch(Diverged([0, 1, 2]), prompts([0, 1, 2]), options, 6, EOS).run()


def test_rules_that_exclude_all_tokens_are_named():
    with pytest.raises(UserError, match="no_repeat_ngram"):
        search([0], 9, vocab=3, num_beams=2, no_repeat_ngram=1, min_length=9)
