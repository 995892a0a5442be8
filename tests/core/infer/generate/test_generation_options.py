"""Options that are out of range or contradict each other are named in one line."""

import re
from dataclasses import asdict

import pytest

from grr_coca.common.errors import UserError
from grr_coca.infer.generate import GenerationOptions

WRONG = [
    ({"max_length": 0}, "max_length must be at least 1, got 0"),
    ({"min_length": -1}, "min_length must be at least 0, got -1"),
    ({"min_length": 5, "max_length": 4}, "min_length 5 must be at most max_length 4"),
    ({"temperature": 0.0}, "temperature must be from 1e-06 to .*, got 0.0; omit it"),
    ({"temperature": float("nan")}, "temperature must be .*, got nan"),
    ({"temperature": 1.0, "top_k": 0}, "top_k must be at least 1, got 0"),
    ({"temperature": 1.0, "top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
    ({"temperature": 1.0, "min_p": 0.0}, "min_p must be above 0 and at most 1, got 0.0"),
    ({"top_p": 0.9, "min_p": 0.1}, "top_p, min_p need sampling"),
    ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
    ({"num_beams": 4, "temperature": 1.0, "top_k": 5}, "num_beams 4 cannot be combined with temperature, top_k"),
    ({"num_beams": 4, "length_penalty": 200.0}, "length_penalty must be from -10 to 10, got 200.0"),
    ({"num_beams": 4, "length_penalty": float("nan")}, "length_penalty must be .*, got nan"),
    ({"temperature": 1e-50}, "temperature must be from 1e-06 to 1e.06, got 1e-50; omit it"),
    ({"temperature": "warm"}, "temperature must be a number, got 'warm'"),
    ({"max_length": 3.5}, "max_length must be a whole number, got 3.5"),
    ({"num_beams": 2.0}, "num_beams must be a whole number, got 2.0"),
    ({"num_beams": None}, "num_beams must be a whole number, got None"),
    ({"length_penalty": 2.0}, "length_penalty needs beam search; set num_beams to 2"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be .*, got 0.0"),
    ({"no_repeat_ngram": -2}, "no_repeat_ngram must be at least 0, got -2"),
    ({"num_captions": 0}, "num_captions must be at least 1, got 0"),
    ({"num_captions": 2}, "num_captions 2 must be at most num_beams 1"),
    ({"num_captions": 5, "num_beams": 4}, "num_captions 5 must be at most num_beams 4"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_invalid_options_are_named_in_one_line(options, message):
    with pytest.raises(UserError) as raised:
        GenerationOptions(**options)
    assert re.search(message, str(raised.value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "top_k": 1, "top_p": 1.0, "min_p": 1.0, "num_captions": 9},
        {"num_beams": 6, "length_penalty": 0.0, "num_captions": 6},
        {"min_length": 3, "max_length": 3, "repetition_penalty": 1.2, "no_repeat_ngram": 2},
    ],
)
def test_good_options_are_taken(options):
    assert asdict(GenerationOptions(**options)) == {**asdict(GenerationOptions()), **options}
