"""Messages print names of strangers' files without what would change the terminal."""

import pytest

from grr_coca.common.errors import count_of, escape_control_chars


@pytest.mark.parametrize("mark", ["\n", "\x1b", "\u2028", "\u202e", "\u2066", "\u200f"])
def test_controls_and_marks_of_direction_are_escaped(mark):
    shown = escape_control_chars(f"a{mark}gnp.exe")
    assert mark not in shown
    assert shown.startswith("a")
    assert shown.endswith("gnp.exe")


def test_a_noun_is_plural_unless_its_number_is_1():
    assert [count_of(number, "image") for number in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]


def test_text_in_any_script_stays():
    assert escape_control_chars("Größe 图 שלום") == "Größe 图 שלום"
