"""Captions that are joined from parts of near ones."""

from grr_coca.infer.adapted.captioner import join_captions


def test_captions_are_joined_at_a_word_of_both():
    joined = join_captions(["latin small letter o with acute", "greek capital letter eta"])
    assert "latin small letter eta" in joined


def test_captions_of_several_sentences_are_not_joined():
    assert join_captions(["Mars! It's a planet.", "It's a coin."]) == []
