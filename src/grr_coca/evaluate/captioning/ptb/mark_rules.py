"""Rules for numbers, addresses, brackets, quotes and symbols. `tokenizer` says which rule wins."""

from collections.abc import Iterator

from grr_coca.evaluate.captioning.ptb import vocabulary
from grr_coca.evaluate.captioning.ptb.rule import (
    BRACKETS,
    CURRENCIES,
    ENTITIES,
    FRACTIONS,
    bracketed,
    drop,
    keep,
    mapped,
    unbroken,
)
from grr_coca.evaluate.captioning.ptb.word_rules import APOSTROPHE, IN_WORD, Draft

GAP = "[- ]"


def addresses() -> Iterator[Draft]:
    """Rules for tags, web and mail addresses, user names and hashtags."""
    attribute = ' [a-z]+(?:="[^"]*")?'
    yield "tag", f"(<(?:[!?][^>]*|[a-z]+(?:{attribute})*|/[a-z]+)>)", unbroken
    yield "web address", "(https?://[^ ()\n]+[^ .,!?)\n])", keep
    yield "host and path", "((?-i:[a-z]+)[.](?:com|org)(?:/[^ \n]+[^ .,!?\n])?)", keep
    yield "mail address", "((?:&lt;|<)?[a-z][^ \n]*@[^ \n]*[^ .\n])", keep
    yield "name of a user", "(@[a-z_][a-z_0-9]*)", keep
    yield "hashtag", f"(#{IN_WORD}+)", keep


def numbers() -> Iterator[Draft]:
    """Rules for numbers and times, fractions, and telephone numbers."""
    joint = r"[.:,]\d+"
    yield "number", rf"([-+]?(?:\d+(?:{joint})*|(?:{joint})+))", keep
    yield "superscript", "([⁻]?[⁰¹²³⁴-⁹]+|[₀-₉]+)", keep
    yield "fraction", rf"((?:\d{{1,4}}{GAP})?\d{{1,4}}[/⁄]\d{{1,4}})", unbroken
    yield "fraction in one character", f"([{''.join(FRACTIONS)}])", mapped(FRACTIONS)
    short, exchange, line = "[0-9]{2,4}", "[0-9]{3,4}", "[0-9]{3,5}"
    area = rf"\([0-9]{{2,3}}\) ?|(?:{short}{GAP})?{short}{GAP}"
    yield "telephone number", f"((?:{area}){exchange}{GAP}?{line})", unbroken
    yield "year of two digits", f"({APOSTROPHE}[0-9][0-9]) ", keep


def marks() -> Iterator[Draft]:
    """Rules for all other marks."""
    yield "entity that is dropped", "(&(?:nbsp|mdash|quot);)", drop
    yield "numbered entity", "(&#[0-9]+;)", keep
    yield "entity", f"({'|'.join(ENTITIES)})", mapped(ENTITIES)
    yield "dollars", "((?-i:[A-Z]*)[$])", keep
    yield "currency", f"([{''.join(CURRENCIES)}])", mapped(CURRENCIES)
    yield "bracket by name", "(-[lr]rb-)", keep
    yield "odd compound", f"(pro-|anti-|s&p-500|s&ls|cap{APOSTROPHE}n|c{APOSTROPHE}est)", keep
    yield "smiley", r"((?-i:[<>]?[:;=][-']?[][()@DP|]))[^a-z0-9]", bracketed
    yield "face", "([-^]_[-^])", keep
    yield "bracket", r"([()\[\]{}])", mapped(BRACKETS)
    yield "dash", "(-{3,4})(?!-)", drop
    yield "hyphens", "(-+)", keep
    yield "repeated mark", r"(@+|#+|_+|\*+|(?:\\\*){1,3}|[?!]+|<<|>>)", keep
    yield "quote before a letter", "(')(?:[a-z][^ ])", keep
    yield "quote of two apostrophes", "('')", drop
    symbols = vocabulary.SYMBOLS.replace(" ", "")
    yield "symbol", rf"([.,:/=+%&~^|\\<>@#*$!?_{symbols}\u2190-\u2bff\uff01-\uff0f])", keep
