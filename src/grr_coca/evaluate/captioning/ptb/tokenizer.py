"""The tokens that caption metrics count. The COCO caption evaluation runs Stanford's tokenizer of 2014, and these are
its tokens.

The rules were derived from its behaviour; `docs/caption-metrics.md` says how. At each place of the text, the rule that
matches the most characters wins, including the characters that must follow its token. If several rules match equally
many, the first one wins. Case does not matter, unless a rule says otherwise. A character that no rule matches is
dropped.
"""

import re
from collections.abc import Iterator
from functools import cache

from grr_coca.evaluate.captioning.ptb.mark_rules import addresses, marks, numbers
from grr_coca.evaluate.captioning.ptb.rule import Rule
from grr_coca.evaluate.captioning.ptb.word_rules import abbreviations, compounds, words

PUNCTUATION = frozenset(["'", ".", "?", "!", ",", ":", "-", "--"])
"""Tokens that are not counted. Brackets are counted: the evaluation's list has -LRB-, but its tokens are -lrb-."""

PLAIN = re.compile("([A-Za-z]+),?(?=[ \n])")
"""A word that can match only the rule for words."""
CONTRACTED = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])
BREAKS = re.compile("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029\U00010000-\U0010ffff]")
"""Line breaks, and characters beyond the basic plane such as emoji, which the reference does not know. They become
spaces."""


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
            at += 1  # a space, or a character that no rule matches
            continue
        yield rewrite(token)
        at += taken
