"""Rules for words, abbreviations, and words joined by hyphens or slashes. `tokenizer` says which rule wins."""

from collections.abc import Iterator

from grr_coca.evaluate.captioning.ptb import vocabulary
from grr_coca.evaluate.captioning.ptb.rule import Rewrite, keep, plain, straight
from grr_coca.evaluate.captioning.ptb.vocabulary import any_of

Draft = tuple[str, str, Rewrite]
"""A rule before its pattern is compiled: name, pattern, rewrite."""

LETTER = r"[^\W\d_²³¹¼-¾\u2070-\u209c\u2150-\u2bff]"
"""A letter. Superscripts, fractions and numbers in circles are excluded, though `\\w` matches them."""
IN_WORD = f"(?:{LETTER}|[\u0300-\u036f\u093e-\u094e\u00ad]|&eacute;)"
"""A letter, a combining accent or Devanagari vowel sign, or a soft hyphen."""
RUN = rf"{IN_WORD}(?:{IN_WORD}|\d)*"
WORD = f"{RUN}(?:[.!?]{RUN})*"
"""Letters and digits, beginning with a letter. Marks between two such runs join them to one word."""

APOSTROPHE = "(?:['’]|&apos;)"
AUXILIARY = f"{APOSTROPHE}(?:s|m|d|ll|re|ve)"
NEGATION = f"n(?:{APOSTROPHE}|[`‘])t"
BEFORE_MARK = "[,;:]"
"""If one of these marks follows a point, the point belongs to the word before."""


def words() -> Iterator[Draft]:
    """Rules for words, the parts of contractions, and words that keep an apostrophe."""
    yield "programming language", r"(c\+\+|[cf]#)", keep
    for first, second in (pair.split("-") for pair in vocabulary.TWO_WORDS.split()):
        yield f"{first} {second}", f"({first}){second}", keep
    yield "word before an auxiliary", f"({WORD}){AUXILIARY}", plain
    yield "word before n't", f"([a-z]*[a-mo-z]){NEGATION}", keep
    yield "word", f"({WORD})", plain
    yield "shortened word", f"({APOSTROPHE}(?:n{APOSTROPHE}?|em|till?|cause|[2-9]0s))", keep
    yield "dropped ending", f"((?:[dj]|dunkin|somethin|ol){APOSTROPHE})", keep
    yield "name with an apostrophe", f"((?-i:[A-HJ-Xn]){APOSTROPHE}{LETTER}{LETTER}+)", keep
    yield "apostrophe between vowels", f"({LETTER}+?[aeiou]{APOSTROPHE}(?-i:[aeiA-Z]){LETTER}*)", keep
    yield "kept apostrophe", f"({any_of(vocabulary.KEPT_APOSTROPHES)})", keep
    yield "y'all", f"(y{APOSTROPHE}){LETTER}", keep
    yield "auxiliary", f"({AUXILIARY})[^a-z]", straight
    yield "n't", f"({NEGATION})", straight


def abbreviations() -> Iterator[Draft]:
    """Rules for words that keep their point."""
    before_words = f"{vocabulary.MONTHS_AND_DAYS} {vocabulary.STATES} {vocabulary.COMPANIES}"
    states = f"(?-i:{any_of(vocabulary.CAPITALIZED_STATES)})"
    yield "letter at the end of a sentence", f"([a-z])[.] +(?-i:{any_of(vocabulary.SENTENCE_STARTS)})[ \n]", keep
    yield "abbreviation before a number", f"((?:{any_of(vocabulary.BEFORE_NUMBERS)})[.]) ?[0-9]", keep
    yield "abbreviation before anything", rf"((?:{any_of(before_words)}|{states})[.])[\s\S]{{0,2}}", keep
    yield "title", f"((?:{any_of(vocabulary.TITLES)})[.])", keep
    yield "initials", "([a-z](?:[.][a-z])*[.])", keep
    yield "word before its point and a mark", f"({WORD}[.]){BEFORE_MARK}", plain


def compounds() -> Iterator[Draft]:
    """Rules for words joined by hyphens, slashes and ampersands."""
    part = "[a-z0-9]+(?:-[a-z]+){0,2}"
    yield "words with slashes", rf"({part}(?:\\?/{part}){{1,2}})", keep
    yield "words with hyphens", "([a-z0-9][a-z0-9.,]*(?:-(?:[a-z](?:[.][a-z])+[.]|[a-z0-9]+))+)", keep
    both = rf"(?:{LETTER}|\d)"
    mixed = f"(?:[dol]{APOSTROPHE}{both})?{both}+(?:[-_]{both}+)*"
    capitals = "(?-i:[A-Z]+(?:[+&][A-Z]+)+)"
    for name, pattern in {"letters and digits": mixed, "capitals with an ampersand": capitals}.items():
        yield f"{name} before their point and a mark", f"({pattern}[.]){BEFORE_MARK}", keep
        yield name, f"({pattern})", keep
