"""The tokens that caption metrics count: those of the COCO caption evaluation, which runs Stanford's tokenizer of 2014.

The rules were derived from its behaviour; `docs/caption-metrics.md` says how. At each place of the text, the rule wins
that matches most characters, those that must follow its token included. Of rules that match as many, the first wins.
Upper and lower case are alike, unless a rule says otherwise. A character that no rule takes is left out.
"""

import re
from collections.abc import Iterator
from functools import cache

from grr_coca.evaluate.captioning.ptb.mark_rules import addresses, marks, numbers
from grr_coca.evaluate.captioning.ptb.rule import Rule
from grr_coca.evaluate.captioning.ptb.word_rules import abbreviations, compounds, words

PUNCTUATION = frozenset(["'", ".", "?", "!", ",", ":", "-", "--"])
"""Tokens that are not counted. Brackets are: the evaluation lists them as -LRB- and meets them as -lrb-."""

PLAIN = re.compile("([A-Za-z]+),?(?=[ \n])")
"""A word that no rule but the one for words can take."""
CONTRACTED = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])
BREAKS = re.compile("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029\U00010000-\U0010ffff]")
"""Line breaks, and characters beyond the basic plane such as emoji, which the reference does not know."""


@cache
def rules() -> tuple[Rule, ...]:
    """All rules in their order."""
    parts = (words(), addresses(), numbers(), abbreviations(), marks(), compounds())
    return tuple(
        Rule(name, re.compile(pattern, re.IGNORECASE), rewrite) for part in parts for name, pattern, rewrite in part
    )


def tokenize(caption: str) -> list[str]:
    """Lower-case tokens of a caption, without punctuation."""
    text = BREAKS.sub(" ", caption).rstrip() + "\n"
    tokens = (token for written in _scan(text) for token in written.lower().split(" "))
    return [token for token in tokens if token and token not in PUNCTUATION]


def _scan(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        word = PLAIN.match(text, at)
        if word and (at == 0 or text[at - 1] == " ") and word[1].lower() not in CONTRACTED:
            yield word[1]
            at = word.end()
            continue
        best, taken, token, rewrite = 0, 0, "", None
        for rule in rules():
            found = rule.pattern.match(text, at)
            if found and len(found[0]) > best:
                best, taken, token, rewrite = len(found[0]), len(found[1]), found[1], rule.rewrite
        if rewrite is None:
            at += 1  # a space, or a character that no rule takes
            continue
        yield rewrite(token)
        at += taken
