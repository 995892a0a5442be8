"""Rules for words, abbreviations and what is joined by hyphens and slashes. See `tokenizer` for how they compete."""

from collections.abc import Iterator

from grr_coca.evaluate.captioning.ptb import vocabulary
from grr_coca.evaluate.captioning.ptb.characters import MARKS_IN_WORDS, char_class, digits, expand, letters
from grr_coca.evaluate.captioning.ptb.rewrite import Rewrite, keep, plain, straight
from grr_coca.evaluate.captioning.ptb.vocabulary import any_of

SPACE = "[ \t\u00a0\u2000-\u200a\u3000]"
APOSTROPHE = "(?:['\u0092\u2019]|&apos;)"
ANY_APOSTROPHE = f"(?:{APOSTROPHE}|[`\u0091\u2018\u201b])"
AUXILIARY = f"{APOSTROPHE}(?:s|m|d|ll|re|ve)"
NEGATION = f"n{ANY_APOSTROPHE}t"
POINTED = "[.])[,;:\u3001]"
"""The end of a token with a point that a comma or the like follows."""


def letter() -> str:
    """One letter of a word."""
    return f"(?:[{letters()}{char_class(expand(MARKS_IN_WORDS))}\u00ad]|&[aeiou](?:acute|grave|uml);)"


def word() -> str:
    """Letters, then letters and digits; points and marks inside join words."""
    run = f"{letter()}(?:{letter()}|[{digits()}])*"
    return f"{run}(?:[.!?]{run})*"


def words() -> Iterator[tuple[str, Rewrite]]:
    """Words, what contractions are cut into, and apostrophes that stay."""
    a = f"[{letters()}]"
    yield r"(c\+\+|[cf]#)", keep
    for first, second in (pair.split("-") for pair in vocabulary.TWO_WORDS.split()):
        yield f"({first}){second}", keep
    yield f"({word()}){AUXILIARY}", plain
    yield f"([a-z\u00ad]*[a-mo-z]\u00ad*){NEGATION}", plain
    yield f"({word()})", plain
    yield f"({APOSTROPHE}(?:n{APOSTROPHE}?|em|till?|cause|[2-9]0s))", keep
    yield f"((?:[ldj]|dunkin|somethin|ol){APOSTROPHE})", keep
    yield f"((?-i:[A-HJ-XZn]){ANY_APOSTROPHE}{a}{a}+)", keep
    yield f"({a}+?[aeiouy]{ANY_APOSTROPHE}(?-i:[aeiouA-Z]){a}*)", keep
    yield f"(cont'd[.]?|{any_of(vocabulary.KEPT_APOSTROPHES)})", keep
    yield f"(y{APOSTROPHE}){a}", keep
    yield f"({AUXILIARY}|{NEGATION})[^a-z]", straight


def abbreviations() -> Iterator[tuple[str, Rewrite]]:
    """Words that keep their point."""
    states = f"(?-i:{any_of(vocabulary.CAPITALIZED_STATES)})"
    initials = "[a-z](?:[.][a-z])*|(?:canada|sino|korean|eu|japan|non)-u[.]s|u[.]s[.]-u(?:[.]s[.]s[.]r|[.]k)"
    yield f"([a-z])[.]{SPACE}+(?-i:{any_of(vocabulary.SENTENCE_STARTS)})(?:{SPACE}|[?!\n])", keep
    yield f"((?:{any_of(vocabulary.BEFORE_NUMBERS)})[.]){SPACE}?[0-9]", keep
    yield f"((?:{any_of(vocabulary.BEFORE_WORDS)}|{states})[.])[\\s\\S]{{0,2}}", keep
    yield f"((?:{any_of(vocabulary.TITLES)}|{initials})[.])", keep
    yield f"([a-z0-9]+(?:[.][a-z0-9]+)*[.](?:{any_of(vocabulary.FILE_ENDINGS)}))(?:{SPACE}|[.?!,\"'<]|$)", keep
    yield f"({word()}{POINTED}", plain


def compounds() -> Iterator[tuple[str, Rewrite]]:
    """Words joined by hyphens, slashes and ampersands."""
    both = f"[{letters()}{digits()}]"
    part = "[a-z0-9]+(?:-[a-z]+){0,2}"
    yield f"({part}(?:\\\\?/{part}){{1,2}})", keep
    french = f"(?:[dol]{ANY_APOSTROPHE}{both})?"
    patterns = (
        "[a-z0-9][a-z0-9.,\u00ad]*(?:-(?:[a-z](?:[.][a-z])+[.]|[a-z0-9\u00ad]+))+",
        f"{french}{both}+(?:[-_\u058a\u2010\u2011]{french}{both}+)*",
        "(?-i:[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)",
    )
    for pattern in patterns:
        yield f"({pattern}{POINTED}", plain
        yield f"({pattern})", plain
