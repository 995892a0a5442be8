"""Captions of icons: words of the thing, without those of drawing style."""

import pytest
from icon_captions import brand_captions, further_caption, is_logo

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
def test_a_caption_is_the_name_without_style_and_numbers(name, caption):
    assert caption_of(name, Styles()) == caption


def test_a_word_that_ends_many_names_of_a_set_is_one_of_style():
    styles = style_words(ENDINGS, [])
    assert caption_of("traffic-light", styles) == "traffic"
    assert caption_of("text-bold-light", styles) == "text"  # the price: there, `bold` cannot be told from a style
    assert caption_of("sun", styles) == "sun"
    names = [f"thing{number}" for number in range(99)]
    assert caption_of("traffic-light", style_words([*names, "traffic-light"], [])) == "traffic light"


def test_declared_endings_and_frequent_beginnings_are_style():
    names = [f"{style}-{thing}" for style in ("baseline", "round", "sharp") for thing in ("home", "user", "key")]
    styles = style_words(names, ["20-regular"])
    assert caption_of("round-home", styles) == "home"
    assert caption_of("home-20-regular", styles) == "home"
    assert caption_of("round", styles) == "round"


@pytest.mark.parametrize(
    ("words", "caption"),
    [
        ("bx-comment", "comment"),
        ("Pie_Chart-outline", "pie chart"),
        ("two way", "two way"),
        ("123", None),
        ("façade", None),
        ("interface signal graph heart line beat square", None),
    ],
)
def test_a_further_caption_is_short_and_of_words(words, caption):
    assert further_caption(words) == caption


def test_logos_are_told_by_their_names_and_by_what_logo_sets_agree_on():
    sets = [
        ["github", "apple", "line", "target"],
        ["github", "apple", "line"],
        ["github", "apple-solid", "line", "acme"],
    ]
    brands = brand_captions(sets)
    assert brands == {"github", "apple"}
    names = ["brand-acme", "logo-acme", "acme-logo", "github", "social-github", "line", "target", "social-distancing"]
    assert [is_logo(name, caption_of(name, Styles()), brands) for name in names] == [True] * 5 + [False] * 3
