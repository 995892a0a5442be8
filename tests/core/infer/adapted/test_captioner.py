"""Captions joined from parts of near ones, and the decoder's log-probabilities of given captions."""

import numpy as np
import pytest

from grr_coca import load
from grr_coca.infer.adapted.captioner import add_log_probs, join_captions

TEXTS = (
    ["red heart", "red heart with an arrow", "red", "blue bird"],
    ["up arrow"],
    ["up", "up arrow to the left", "up"],
)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_captions_read_together_equal_each_by_itself(engine):
    model = load("icons", "cpu", engine=engine)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    together = add_log_probs(model.engine, model.tokenizer, model.engine.encode_images(pixels), TEXTS)
    for image, texts in enumerate(TEXTS):
        encoded = model.engine.encode_images(pixels[image : image + 1])
        for text, found in zip(texts, together[image], strict=True):
            expected = add_log_probs(model.engine, model.tokenizer, encoded, [[text]])[0][0]
            assert found.text == text
            assert found.token_ids == expected.token_ids
            np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-4)


def test_captions_are_joined_at_a_word_of_both():
    joined = join_captions(["latin small letter o with acute", "greek capital letter eta"])
    assert "latin small letter eta" in joined


def test_captions_of_several_sentences_are_not_joined():
    assert join_captions(["Mars! It's a planet.", "It's a coin."]) == []
