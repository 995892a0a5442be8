"""The tokens that caption metrics count: the Penn Treebank tokenizer of the COCO caption evaluation."""

import re
from collections.abc import Iterator, Sequence

from grr_coca.evaluate.captioning.ptb_rules import rules

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that are not counted. Brackets are: the evaluation lists them as -LRB- and meets them as -lrb-."""

PLAIN = re.compile("([A-Za-z]+),?(?=[ \n])")
"""A word that no rule but the one for words can take."""
CONTRACTED = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])
NEWLINES = re.compile("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]")


def tokenize(caption: str) -> list[str]:
    """Lower-case tokens of a caption, without punctuation."""
    text = NEWLINES.sub(" ", caption).rstrip() + "\n"
    tokens = (token for written in _scan(text) for token in written.lower().split(" "))
    return [token for token in tokens if token and token not in PUNCTUATION]


def tokenize_all(captions: Sequence[str]) -> list[list[str]]:
    """The tokens of every caption."""
    return [tokenize(caption) for caption in captions]


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
