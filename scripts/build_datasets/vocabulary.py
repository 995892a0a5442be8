"""Which words are English: Open Clip Art's titles come in many languages, and say 'en' in all of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable

from packages import Sources

OTHER_LANGUAGES = ("it", "fr", "es", "pt", "de", "nl", "pl", "da", "sv", "hu", "lt", "fi")
COUNTRY_FLAGS = 98  # emojibase's subgroup; names of countries say nothing of the language
_PARTICLES = """
la le les il lo gli el los las du des da de del della di un une una avec con et y der die das von
"""
PARTICLES = frozenset(_PARTICLES.split())
# English in clip art, absent from the lists below or claimed by another language's word list.
_ENGLISH = """
a an the of in on with and or to for by from at as is old red blue green yellow orange purple black
white grey gray brown pink silver gold golden blond blank single double small big large tall long
short round flat simple cartoon outline silhouette line drawing sketch left right up down top front
side back open closed male female kid guy lady cup set gas pump bin bike helicopter truck
"""
ALSO_ENGLISH = frozenset(_ENGLISH.split())


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, of any script."""
    return re.findall(r"[^\W\d_]+", text.lower())


def _emojibase_words(sources: Sources, language: str) -> set[str]:
    entries = json.loads(sources.read_one("emojibase", f"package/{language}/data.json"))
    named = [e for e in entries if e.get("subgroup") != COUNTRY_FLAGS]
    return {w for e in named for text in [e["label"], *e.get("tags", [])] for w in words_of(text)}


def english(sources: Sources, repeated: Iterable[str]) -> set[str]:
    """Words of the English word lists of the other corpora, and the clip-art keywords that recur."""
    icons = json.loads(sources.read_one("healthicons", "/meta-data.json"))
    medical = {w for e in icons for text in [e["title"], *e["tags"]] for w in words_of(text)}
    counts = Counter(w for text in repeated for w in words_of(text))
    common = {w for w, count in counts.items() if count >= 3}
    known = _emojibase_words(sources, "en") | medical | common | ALSO_ENGLISH
    return known | {w + "s" for w in known} | {w.removesuffix("s") for w in known if len(w) > 4}


def foreign(sources: Sources, known: set[str]) -> set[str]:
    """Words of other languages' lists that are no English words."""
    return {w for language in OTHER_LANGUAGES for w in _emojibase_words(sources, language)} - known | PARTICLES
