"""Words in the names of icons, without style words and numbers that only distinguish variants within an icon set."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_STYLES = """
outline outlined outlines filled rounded duotone twotone solid linear monochrome expressive ltr rtl xs sm md lg xl
12px 16px 20px 24px 32px alt
"""
STYLES = frozenset(_STYLES.split())
"""Words that are style words in every set, if they are at the end of a name."""

_STYLES_IF_FREQUENT = """
line lined fill bold light thin regular round sharp broken bulk mini micro flat duo remix stroke baseline two-tone
print small compact active o r v m one two three four five six
"""
STYLES_IF_FREQUENT = frozenset(_STYLES_IF_FREQUENT.split())
"""Words that are style words only in sets in which many names end with them. Elsewhere, they may be part of the concept
(traffic light, text bold, one of two)."""

FREQUENT, FREQUENT_FIRST = 0.03, 0.1
"""Minimum fractions of a set's names that must end (`FREQUENT`) or start (`FREQUENT_FIRST`) with a word for it to count
as a style word."""

_COUNTED = """
number numbers dice die looks counter timer replay forward back hexagon step level layer layout grid keycap exposure
filter iso plus minus speed battery signal wifi
"""
COUNTED = frozenset(_COUNTED.split())
"""Words after which a number is part of the concept. After other words, a number only distinguishes variants of a
concept."""


def words_of_name(name: str) -> str:
    """Return the words of an icon's name in lower case, separated by spaces.

    `Trash2`, `trash_2` and `trash-2` all become `trash 2`. A lower-case name is not split before digits, so `trash2`
    stays `trash2`.
    """
    if not name.islower():  # the name of a component
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[a-z])(?=[0-9])", " ", name)
    return " ".join(re.split(r"[\W_]+", name)).strip().lower()


class Styles(NamedTuple):
    """Style words in the names of one set: words that end names, and words that start names."""

    endings: frozenset[str] = STYLES
    beginnings: frozenset[str] = frozenset()


def style_words(names: Sequence[str], declared: Iterable[str]) -> Styles:
    """Return the style words of a set.

    Words of `STYLES` and declared words count at the end of a name, and words of `STYLES_IF_FREQUENT` do if they end
    many names. Words of both lists count at the start of a name if they start many names.

    Args:
        names: Names of the set's icons.
        declared: Name endings that the set lists as styles, such as `20-filled`.
    """
    endings = {word for ending in declared for word in ending.split("-") if word} | STYLES
    for _ in range(3):  # a name may have several style words in a row: `home-outline-rounded`, `user-20-filled`
        styles = Styles(frozenset(endings))
        lasts = Counter(words[-1] for name in names if len(words := without_styles(name.split("-"), styles)) > 1)
        endings |= {word for word in STYLES_IF_FREQUENT if lasts[word] >= FREQUENT * len(names)}
    firsts = Counter(name.split("-")[0] for name in names)
    beginnings = {word for word in STYLES | STYLES_IF_FREQUENT if firsts[word] >= FREQUENT_FIRST * len(names)}
    return Styles(frozenset(endings), frozenset(beginnings))


def caption_of(name: str, styles: Styles) -> str:
    """Convert an icon's name to a caption: its words in lower case, without style words and variant numbers.

    Args:
        name: Name in Iconify's spelling, which joins words by `-`.
        styles: Style words of the set.
    """
    words = without_styles([word for word in name.lower().split("-") if word], styles)
    return " ".join(re.sub(r"\A([a-z]{4,})\d{1,2}\Z", r"\1", word) for word in words)  # passport2 is a passport


def without_styles(words: list[str], styles: Styles) -> list[str]:
    """Remove style words and variant numbers from the end, and style words from the start, of a name's words.

    At least one word is always kept.
    """
    while len(words) > 1 and (words[-1] in styles.endings or (words[-1].isdigit() and words[-2] not in COUNTED)):
        words = words[:-1]
    while len(words) > 1 and words[0] in styles.beginnings:
        words = words[1:]
    return words


_NO_LOOK = frozenset({"alt", "ltr", "rtl", "xs", "sm", "md", "lg", "xl", "12px", "16px", "20px", "24px", "32px"})


def style_of(name: str, styles: Styles) -> str:
    """Return the style words at the end of a name, such as `solid` in `home-20-solid`, separated by spaces.

    Words for sizes and text directions are omitted. The result is empty if the name ends with no style word.
    """
    words = name.lower().split("-")
    ending = words[len(without_styles(words, Styles(styles.endings))) :]
    return " ".join(word for word in ending if word in styles.endings - _NO_LOOK)
