"""Tokenizer for caption metrics, with the same results as Stanford's tokenizer of 2014, which the COCO evaluation uses.

The rules were derived from the behaviour of that tokenizer (see `docs/caption-metrics.md`). At each position in the
text, the rule that matches the most characters is used; characters that must follow the rule's token also count. If
several rules match the same number of characters, the first of them is used. Case is ignored, except where a rule
specifies it. A character that no rule matches is dropped.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

Rewrite = Callable[[str], str]

BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
CURRENCIES = {"¢": "cents", "£": "#", "€": "$"}
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}


class Rule(NamedTuple):
    """Rule for one kind of token.

    `name` describes the rule. Group 1 of `pattern` is the token. The part of the pattern after the group must follow
    the token, and is left in the text for the next rule. `rewrite` returns the final form of the token.
    """

    name: str
    pattern: re.Pattern[str]
    rewrite: Rewrite


def keep(token: str) -> str:
    """Return the token unchanged."""
    return token


def drop(_: str) -> str:
    """Return an empty text, so that the token is dropped."""
    return ""


def straighten_apostrophe(token: str) -> str:
    """Return the token with `'` in place of `’` and `&apos;`, and with a backquote in place of `‘`."""
    return token.replace("&apos;", "'").replace("’", "'").replace("‘", "`")


def plain(token: str) -> str:
    """Return the token without soft hyphens, which only mark possible line breaks."""
    return token.replace("\u00ad", "")


def name_brackets(token: str) -> str:
    """Return the token with its round brackets replaced by their names. Other brackets, as in emoticons, are kept."""
    return token.replace("(", BRACKETS["("]).replace(")", BRACKETS[")"])


def _use_no_break_spaces(token: str) -> str:
    """Return the token with no-break spaces instead of spaces, and with its round brackets replaced by their names."""
    return name_brackets(token).replace(" ", "\u00a0")


def rewrite_by_table(table: dict[str, str]) -> Rewrite:
    """Return a function that replaces a token by its entry in a table with lower-case keys.

    The function keeps a token that is not in the table.
    """
    return lambda token: table.get(token.lower(), token)


# --- Words that the tokenizer treats specially. Abbreviations are listed without their dot

MONTHS_AND_DAYS = "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri"
STATES = "ala ariz calif colo conn ct fla ga ind ky md mich minn mo mont nev okla penn tenn va vt wis wyo"
CAPITALIZED_STATES = "Az Ark Del Ill La Mass Miss Ore Pa Tex Wash"
"""Words that are abbreviations only if they begin with a capital letter."""
COMPANIES = (
    "inc co cos corp pty pte ptes ltd plc rt bancorp bhd assn univ intl sys bldg blvd rd tel est ext sq etc al seq jr "
    "sr bros esq ph.d ed.d"
)

TITLES = (
    "mr mrs ms dr drs prof profs sen sens rep reps atty attys lt col gen messrs gov govs adm rev maj sgt cpl pvt capt "
    "st ste ave pres lieut hon brig cmdr comdr pfc spc supt supts det mt ft adj adv asst assoc ens insp mlle mme msgr "
    "sfc invt elec natl mfg mtg dept vs alex wm jos cie cf treas ph"
)
BEFORE_NUMBERS = "ca fig figs prop no nos art pp op"
"""Words that are abbreviations only if a number follows."""
SENTENCE_STARTS = "A He In It She The There They This"
"""Words before which a dot after a single letter ends the sentence. Case matters here."""

TWO_WORDS = "can-not gon-na got-ta lem-me gim-me wan-na 't-is 't-was"
KEPT_APOSTROPHES = "c'mon e'er li'l s'mores"
SYMBOLS = "¥ § © ® ° ± ´ ¶ · ¿ × ÷ „ † ‡ • ′ ″ ‚ ‟ № ™"
"""Symbols that are tokens, in addition to those in ASCII and in the block of arrows, shapes and pictographs."""


def _any_of(words: str) -> str:
    """Return a pattern that matches any of the words, the longest first."""
    return "|".join(word.replace(".", "[.]") for word in sorted(words.split(), key=len, reverse=True))


# --- The rules

Draft = tuple[str, str, Rewrite]
"""Rule before its pattern is compiled: name, pattern, rewrite."""

LETTER = r"[^\W\d_²³¹¼-¾\u2070-\u209c\u2150-\u2bff]"
"""Pattern of a letter. Superscripts, fractions and circled numbers are excluded, although `\\w` matches them."""
IN_WORD = f"(?:{LETTER}|[\u0300-\u036f\u093e-\u094e\u00ad]|&eacute;)"
"""Pattern of a letter, a combining accent, a Devanagari vowel sign, a soft hyphen, or `&eacute;`."""
RUN = rf"{IN_WORD}(?:{IN_WORD}|\d)*"
WORD = f"{RUN}(?:[.!?]{RUN})*"
"""Pattern of runs of letters and digits that begin with a letter. A dot, exclamation mark or question mark between two
runs joins them into one word."""

APOSTROPHE = "(?:['’]|&apos;)"
AUXILIARY = f"{APOSTROPHE}(?:s|m|d|ll|re|ve)"
NEGATION = f"n(?:{APOSTROPHE}|[`‘])t"
BEFORE_MARK = "[,;:]"
"""Marks before which a dot belongs to the preceding word."""


def words() -> Iterator[Draft]:
    """Yield the rules for words, parts of contractions, words that keep an apostrophe, and names such as C++."""
    yield "programming language", r"(c\+\+|[cf]#)", keep
    for first, second in (pair.split("-") for pair in TWO_WORDS.split()):
        yield f"{first} {second}", f"({first}){second}", keep
    yield "word before an auxiliary", f"({WORD}){AUXILIARY}", plain
    yield "word before n't", f"([a-z]*[a-mo-z]){NEGATION}", keep
    yield "word", f"({WORD})", plain
    yield "shortened word", f"({APOSTROPHE}(?:n{APOSTROPHE}?|em|till?|cause|[2-9]0s))", keep
    yield "dropped ending", f"((?:[dj]|dunkin|somethin|ol){APOSTROPHE})", keep
    yield "name with an apostrophe", f"((?-i:[A-HJ-Xn]){APOSTROPHE}{LETTER}{LETTER}+)", keep
    yield "apostrophe between vowels", f"({LETTER}+?[aeiou]{APOSTROPHE}(?-i:[aeiA-Z]){LETTER}*)", keep
    yield "kept apostrophe", f"({_any_of(KEPT_APOSTROPHES)})", keep
    yield "y'all", f"(y{APOSTROPHE}){LETTER}", keep
    yield "auxiliary", f"({AUXILIARY})[^a-z]", straighten_apostrophe
    yield "n't", f"({NEGATION})", straighten_apostrophe


def abbreviations() -> Iterator[Draft]:
    """Yield the rules for abbreviations, whose dot is part of the token."""
    before_words = f"{MONTHS_AND_DAYS} {STATES} {COMPANIES}"
    states = f"(?-i:{_any_of(CAPITALIZED_STATES)})"
    yield "letter at the end of a sentence", f"([a-z])[.] +(?-i:{_any_of(SENTENCE_STARTS)})[ \n]", keep
    yield "abbreviation before a number", f"((?:{_any_of(BEFORE_NUMBERS)})[.]) ?[0-9]", keep
    yield "abbreviation before anything", rf"((?:{_any_of(before_words)}|{states})[.])[\s\S]{{0,2}}", keep
    yield "title", f"((?:{_any_of(TITLES)})[.])", keep
    yield "initials", "([a-z](?:[.][a-z])*[.])", keep
    yield "word before a dot and a mark", f"({WORD}[.]){BEFORE_MARK}", plain


def _compounds() -> Iterator[Draft]:
    """Yield the rules for words joined by hyphens, slashes and ampersands."""
    part = "[a-z0-9]+(?:-[a-z]+){0,2}"
    yield "words with slashes", rf"({part}(?:\\?/{part}){{1,2}})", keep
    yield "words with hyphens", "([a-z0-9][a-z0-9.,]*(?:-(?:[a-z](?:[.][a-z])+[.]|[a-z0-9]+))+)", keep
    both = rf"(?:{LETTER}|\d)"
    mixed = f"(?:[dol]{APOSTROPHE}{both})?{both}+(?:[-_]{both}+)*"
    capitals = "(?-i:[A-Z]+(?:[+&][A-Z]+)+)"
    for name, pattern in {"letters and digits": mixed, "capitals with an ampersand": capitals}.items():
        yield f"{name} before a dot and a mark", f"({pattern}[.]){BEFORE_MARK}", keep
        yield name, f"({pattern})", keep


GAP = "[- ]"


def addresses() -> Iterator[Draft]:
    """Yield the rules for markup tags, web and mail addresses, user names and hashtags."""
    attribute = ' [a-z]+(?:="[^"]*")?'
    yield "tag", f"(<(?:[!?][^>]*|[a-z]+(?:{attribute})*|/[a-z]+)>)", _use_no_break_spaces
    yield "web address", "(https?://[^ ()\n]+[^ .,!?)\n])", keep
    yield "host and path", "((?-i:[a-z]+)[.](?:com|org)(?:/[^ \n]+[^ .,!?\n])?)", keep
    yield "mail address", "((?:&lt;|<)?[a-z][^ \n]*@[^ \n]*[^ .\n])", keep
    yield "name of a user", "(@[a-z_][a-z_0-9]*)", keep
    yield "hashtag", f"(#{IN_WORD}+)", keep


def numbers() -> Iterator[Draft]:
    """Yield the rules for numbers and times, fractions, and telephone numbers."""
    joint = r"[.:,]\d+"
    yield "number", rf"([-+]?(?:\d+(?:{joint})*|(?:{joint})+))", keep
    yield "superscript", "([⁻]?[⁰¹²³⁴-⁹]+|[₀-₉]+)", keep
    yield "fraction", rf"((?:\d{{1,4}}{GAP})?\d{{1,4}}[/⁄]\d{{1,4}})", _use_no_break_spaces
    yield "fraction in one character", f"([{''.join(FRACTIONS)}])", rewrite_by_table(FRACTIONS)
    short, exchange, line = "[0-9]{2,4}", "[0-9]{3,4}", "[0-9]{3,5}"
    area = rf"\([0-9]{{2,3}}\) ?|(?:{short}{GAP})?{short}{GAP}"
    yield "telephone number", f"((?:{area}){exchange}{GAP}?{line})", _use_no_break_spaces
    yield "year of two digits", f"({APOSTROPHE}[0-9][0-9]) ", keep


def marks() -> Iterator[Draft]:
    """Yield the rules for entities, currencies, brackets, smileys, dashes, quotes and all other marks."""
    yield "entity that is dropped", "(&(?:nbsp|mdash|quot);)", drop
    yield "numbered entity", "(&#[0-9]+;)", keep
    yield "entity", f"({'|'.join(ENTITIES)})", rewrite_by_table(ENTITIES)
    yield "dollars", "((?-i:[A-Z]*)[$])", keep
    yield "currency", f"([{''.join(CURRENCIES)}])", rewrite_by_table(CURRENCIES)
    yield "bracket by name", "(-[lr]rb-)", keep
    yield "odd compound", f"(pro-|anti-|s&p-500|s&ls|cap{APOSTROPHE}n|c{APOSTROPHE}est)", keep
    yield "smiley", r"((?-i:[<>]?[:;=][-']?[][()@DP|]))[^a-z0-9]", name_brackets
    yield "face", "([-^]_[-^])", keep
    yield "bracket", r"([()\[\]{}])", rewrite_by_table(BRACKETS)
    yield "dash", "(-{3,4})(?!-)", drop
    yield "hyphens", "(-+)", keep
    yield "repeated mark", r"(@+|#+|_+|\*+|(?:\\\*){1,3}|[?!]+|<<|>>)", keep
    yield "quote before a letter", "(')(?:[a-z][^ ])", keep
    yield "quote of two apostrophes", "('')", drop
    symbols = SYMBOLS.replace(" ", "")
    yield "symbol", rf"([.,:/=+%&~^|\\<>@#*$!?_{symbols}\u2190-\u2bff\uff01-\uff0f])", keep


# --- The tokenizer

PUNCTUATION = frozenset(["'", ".", "?", "!", ",", ":", "-", "--"])
"""Tokens that are dropped. Brackets are not dropped: the evaluation's list has -LRB-, but its tokens are -lrb-."""

PLAIN = re.compile("([A-Za-z]+),?(?=[ \n])")
"""Pattern of a word that can match only the rule for words."""
CONTRACTED = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])
BREAKS = re.compile("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029\U00010000-\U0010ffff]")
"""Line breaks, and characters beyond the basic plane such as emoji, which the reference tokenizer does not support.
They are replaced by spaces."""


@cache
def rules() -> tuple[Rule, ...]:
    """Return all rules, in the order in which they are tried."""
    parts = (words(), addresses(), numbers(), abbreviations(), marks(), _compounds())
    return tuple(
        Rule(name, re.compile(pattern, re.IGNORECASE), rewrite) for part in parts for name, pattern, rewrite in part
    )


def tokenize(caption: str) -> list[str]:
    """Return the lower-case tokens of a caption, without the punctuation that the COCO evaluation ignores."""
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
            at += 1  # the character is a space, or no rule matches it
            continue
        yield rewrite(token)
        at += taken
