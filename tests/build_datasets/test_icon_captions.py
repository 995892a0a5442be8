"""Captions of icons: words of the thing, without those of drawing style."""

import pytest

from grr_coca_icons.icon_names import Styles, caption_of, style_words

ENDINGS = [
    f"{thing}-{style}" for thing in ("home", "user", "text-bold", "sun") for style in ("bold", "light", "duotone")
]


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("chat-bubble-outline", "chat bubble"),
        ("home-24", "home"),
        ("user-01", "user"),
        ("number-2", "number 2"),
        ("h1", "h1"),
        ("passport2", "passport"),
        ("arrow-up-left", "arrow up left"),
        ("traffic-light", "traffic light"),
        ("outline", "outline"),
        ("linear-scale", "linear scale"),
        ("Sun", "sun"),
    ],
)
def test_caption_is_the_name_without_style_and_numbers(name, caption):
    assert caption_of(name, Styles()) == caption


def test_common_last_word_of_a_set_is_a_style_word():
    styles = style_words(ENDINGS, [])
    assert caption_of("traffic-light", styles) == "traffic"
    assert caption_of("text-bold-light", styles) == "text"  # the price: there, `bold` cannot be told from a style
    assert caption_of("sun", styles) == "sun"
    names = [f"thing{number}" for number in range(99)]
    assert caption_of("traffic-light", style_words([*names, "traffic-light"], [])) == "traffic light"


def test_declared_suffixes_and_frequent_prefixes_are_style_words():
    names = [f"{style}-{thing}" for style in ("baseline", "round", "sharp") for thing in ("home", "user", "key")]
    styles = style_words(names, ["20-regular"])
    assert caption_of("round-home", styles) == "home"
    assert caption_of("home-20-regular", styles) == "home"
    assert caption_of("round", styles) == "round"
