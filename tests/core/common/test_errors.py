"""Messages print names of strangers' files without what would change the terminal."""

import pytest

from grr_coca.common.errors import count_of, escape_control_chars, suggest_name


@pytest.mark.parametrize("mark", ["\n", "\x1b", "\u2028", "\u202e", "\u2066", "\u200f"])
def test_controls_and_marks_of_direction_are_escaped(mark):
    shown = escape_control_chars(f"a{mark}gnp.exe")
    assert mark not in shown
    assert shown.startswith("a")
    assert shown.endswith("gnp.exe")


def test_a_noun_is_plural_unless_its_number_is_1():
    assert [count_of(number, "image") for number in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]


def test_unknown_name_gets_a_suggestion_or_a_short_list():
    many = [f"part{number:03}" for number in range(100)]
    assert suggest_name("icon", ["pictograms", "icons"]) == "did you mean 'icons'?"
    assert suggest_name("x", ["b", "a"]) == "valid names: a, b"
    assert suggest_name("x", []) == "no names are available"
    assert suggest_name("x", many).endswith(", part038, part039 and 60 more")


def test_text_in_any_script_stays():
    assert escape_control_chars("Größe 图 שלום") == "Größe 图 שלום"
