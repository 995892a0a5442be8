"""The tokens that caption metrics count: those of the COCO caption evaluation, which runs Stanford's tokenizer of 2014.

A rule is a pattern of a token and of what must follow it. At each place the rule wins that takes in most, what follows
counted; of equals, the first. Letters are compared without regard to case, except where a rule says otherwise. Each
caption stands alone here; there, the first word of the next one may decide over a letter with a point at the end.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from grr_coca.evaluate.captioning.ptb.mark_rules import addresses, marks, numbers
from grr_coca.evaluate.captioning.ptb.rewrite import Rewrite
from grr_coca.evaluate.captioning.ptb.word_rules import abbreviations, compounds, words

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that are not counted. Brackets are: the evaluation lists them as -LRB- and meets them as -lrb-."""

PLAIN = re.compile("([A-Za-z]+),?(?=[ \n])")
"""A word that no rule but the one for words can take."""
CONTRACTED = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])
NEWLINES = re.compile("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]")


class Rule(NamedTuple):
    """`pattern`: group 1 is the token, the rest must follow; `rewrite`: how the token is written."""

    pattern: re.Pattern[str]
    rewrite: Rewrite


@cache
def rules() -> tuple[Rule, ...]:
    """All rules in their order."""
    parts = (words(), addresses(), numbers(), abbreviations(), marks(), compounds())
    return tuple(
        Rule(re.compile(pattern, re.IGNORECASE | re.ASCII), rewrite) for part in parts for pattern, rewrite in part
    )


def tokenize(caption: str) -> list[str]:
    """Lower-case tokens of a caption, without punctuation."""
    text = NEWLINES.sub(" ", caption).rstrip() + "\n"
    tokens = (token for written in _scan(text) for token in written.lower().split(" "))
    return [token for token in tokens if token and token not in PUNCTUATION]


def _scan(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        plain = PLAIN.match(text, at)
        if plain and (at == 0 or text[at - 1] == " ") and plain[1].lower() not in CONTRACTED:
            yield plain[1]
            at = plain.end()
            continue
        best, taken, token, rewrite = 0, 0, "", None
        for rule in rules():
            found = rule.pattern.match(text, at)
            if found and len(found[0]) > best:
                best, taken, token, rewrite = len(found[0]), len(found[1]), found[1], rule.rewrite
        if rewrite is None:
            at += 1  # a space, or nothing that it knows
            continue
        yield rewrite(token)
        at += taken
