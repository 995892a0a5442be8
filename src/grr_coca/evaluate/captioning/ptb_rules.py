"""The rules of the Penn Treebank tokenizer that the COCO caption evaluation uses (Stanford's, of 2014).

A rule is a pattern of a token and of what must follow it. At each place the rule wins that takes in most, what
follows counted; of equals, the first. All is compared without regard to case, except where it says otherwise.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from grr_coca.evaluate.captioning.characters import (
    MARKS_IN_WORDS,
    SYMBOLS,
    char_class,
    digits,
    expand,
    letters,
)

Rewrite = Callable[[str], str]


class Rule(NamedTuple):
    """`pattern`: group 1 is the token, the rest must follow; `rewrite`: the token as it is written."""

    pattern: re.Pattern[str]
    rewrite: Rewrite


SPACE = "[ \t\u00a0\u2000-\u200a\u3000]"
APOSTROPHE = "(?:['\u0092\u2019]|&apos;)"
ANY_APOSTROPHE = f"(?:{APOSTROPHE}|[`\u0091\u2018\u201b])"
HYPHEN = "[-_\u058a\u2010\u2011]"
URL_CHARS = "[^ \t\n\f\r\"<>|()]"
ACRONYM_TAILS = "U[.]S|U[.]K|U[.]S[.]S[.]R"

MONTHS_AND_DAYS = "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri"
STATES = (
    "ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo"
    "|(?-i:[A]z|[A]rk|[D]el|[I]ll|[L]a|[M]ass|[M]iss|[O]re|[P]a|[T]ex|[W]ash)"
)
COMPANIES = "inc|cos?|corp|pp?t[ye]s?|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|bldg|blvd|rd"
TITLES = (
    "mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave|pres|lieut"
    "|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens|insp|mlle|mme|msgr|sfc|sr|invt|elec|natl|m[ft]g|dept"
)
OTHERS = "vs|v|alex|wm|jos|cie|a[.]k[.]a|cf|treas|ph"
SUFFIXES = "tel|est|ext|sq|etc|al|seq|jr|sr|bros|esq|(?:ed|ph)[.]d"
BEFORE_NUMBERS = "ca|figs?|prop|nos?|art|bldg|pp|op"
SENTENCE_STARTS = (
    "About|According|Additionally|After|An|A|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Mr[.]|Ms[.]"
    "|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|When|While|What|Yet"
    "|You"
)
BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
CURRENCIES = {"¢": "cents", "£": "#", "¤": "$", "\u0080": "$", "\u20a0": "$", "€": "$"}
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&apos;": "'"}
QUOTE = "`\u2018-\u201f\u0082\u0084\u0091-\u0094\u2039\u203a\u00ab\u00bb"
QUOTES = str.maketrans(
    {**dict.fromkeys("‘‛‹\u0091", "`"), **dict.fromkeys("’›\u0092", "'")}
    | {**dict.fromkeys("“«\u0093", "``"), **dict.fromkeys("”»\u0094", "''")}
)


def keep(token: str) -> str:
    """The token as it stands."""
    return token


def drop(_: str) -> str:
    """No token."""
    return ""


def straight(token: str) -> str:
    """Typographic apostrophes as ASCII."""
    return token.replace("&apos;", "'").translate(QUOTES)


def plain(token: str) -> str:
    """Without the hyphens that only mark where a word may be broken; alone, one is a hyphen."""
    return token.replace("&amp;", "&").replace("\u00ad", "") or "-"


def bracketed(token: str) -> str:
    """Round brackets by name; Stanford leaves the other kinds in a smiley."""
    return token.replace("(", BRACKETS["("]).replace(")", BRACKETS[")"])


def unbroken(token: str) -> str:
    """Spaces inside a token become unbreakable ones."""
    return bracketed(token).replace(" ", "\u00a0")


def constant(token: str) -> Rewrite:
    """The same token, whatever was matched."""
    return lambda _: token


def mapped(table: dict[str, str]) -> Rewrite:
    """The token that a table has for it, or itself."""
    return lambda token: table.get(token.lower(), token)


@cache
def rules() -> tuple[Rule, ...]:
    """All rules in their order."""
    return tuple(Rule(re.compile(pattern, re.IGNORECASE | re.ASCII), rewrite) for pattern, rewrite in _patterns())


def _patterns() -> Iterator[tuple[str, Rewrite]]:
    yield from _words()
    yield from _addresses()
    yield from _numbers()
    yield from _abbreviations()
    yield from _marks()
    yield from _compounds()


def _letter() -> str:
    return f"(?:[{letters()}{char_class(expand(MARKS_IN_WORDS))}\u00ad]|&[aeiou](?:acute|grave|uml);)"


def _word() -> str:
    character = f"(?:{_letter()}|[{digits()}])"
    return f"{_letter()}{character}*(?:[.!?]{_letter()}{character}*)*"


def _words() -> Iterator[tuple[str, Rewrite]]:
    a, word = f"[{letters()}]", _word()
    auxiliary = f"{APOSTROPHE}(?:[msd]|re|ve|ll)"
    negation = f"n{ANY_APOSTROPHE}t"
    yield r"(c\+\+|[cf]#)", keep
    yield "('t|can)(?:(?<=t)was|(?<=n)not)", keep
    yield "('t(?=is)|gon(?=na)|got(?=ta)|lem(?=me)|gim(?=me)|wan(?=na))(?:is|na|ta|me)", keep
    yield f"({word})(?:{auxiliary})", plain
    yield f"([a-z\u00ad]*[a-mo-z]\u00ad*)(?:{negation})", plain
    yield f"({word})", plain
    yield f"({APOSTROPHE}(?:n{APOSTROPHE}?|em|till?|cause|[2-9]0s)|[ldj]{APOSTROPHE}|(?:dunkin|somethin|ol){APOSTROPHE})", keep
    yield f"((?-i:[A-HJ-XZn]){ANY_APOSTROPHE}{a}{a}+|{a}+?[aeiouy]{ANY_APOSTROPHE}(?-i:[aeiouA-Z]){a}*)", keep
    yield "(cont'd[.]?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)", keep
    yield f"(y{APOSTROPHE}){a}", keep
    yield f"({auxiliary}|{negation})[^a-z]", straight


def _addresses() -> Iterator[tuple[str, Rewrite]]:
    host = "[^ \t\n\f\r\"<>|.!?(){},]+[.]"
    last = "[^ \t\n\f\r\"<>|.!?(){},-]"
    mail = "[^ \t\n\f\r\"<>|(){}\u00a0]"
    attribute = "[a-z][a-z0-9_:.-]*(?:[ ]*=[ ]*(?:'[^'\r\n]*'|\"[^\"\r\n]*\"|[a-z][a-z0-9_:.-]*))?"
    yield f"(<(?:[!?][a-z-][^>\r\n]*|[a-z][a-z0-9_:.-]*(?:[ ]+{attribute})*[ ]*/?|/[a-z][a-z0-9_:.-]*)[ ]*>)", unbroken
    yield f"(https?://[^ \t\n\f\r\"<>|()]+{last})", keep
    yield f"((?:www[.](?:{host})+[a-z]{{2,4}}|(?:(?-i:[^ \t\n\f\r\"`'|!(){{}}$0-9A-Z,./:;<=>?@\\[\\]\\\\^_-]+)[.])+(?:com|net|org|edu))(?:/{URL_CHARS}+{last})?)", keep
    yield f"((?:&lt;|<)?[a-z0-9]{mail}*@(?:[^ \t\n\f\r\"<>|(){{}}.\u00a0]+[.])*[^ \t\n\f\r\"<>|(){{}}.\u00a0]+(?:&gt;|>)?)", keep
    yield f"(@[a-z_][a-z_0-9]*|#{_letter()}+)", keep


def _numbers() -> Iterator[tuple[str, Rewrite]]:
    d = f"[{digits()}]"
    separator = "[- \u00a0]"
    yield f"({d}{{1,2}}[-/]{d}{{1,2}}[-/]{d}{{2,4}})", keep
    yield f"([-+]?{_number()})", plain
    yield "([\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+))", keep
    yield f"((?:{d}{{1,4}}{separator})?{d}{{1,4}}(?:\\\\?/|\u2044){d}{{1,4}})", unbroken
    yield f"([{''.join(FRACTIONS)}\u2155-\u215e])", mapped(FRACTIONS)
    yield (
        f"((?:\\([0-9]{{2,3}}\\)[ \u00a0]?|(?:\\+\\+?)?(?:[0-9]{{2,4}}{separator})?[0-9]{{2,4}}{separator})"
        f"[0-9]{{3,4}}{separator}?[0-9]{{3,5}}|(?:(?:\\+\\+?)?[0-9]{{2,4}}[.])?[0-9]{{2,4}}[.][0-9]{{3,4}}[.][0-9]{{3,5}})"
    ), unbroken
    yield f"({APOSTROPHE}[0-9][0-9])[ \u00a0\n]", keep


def _number() -> str:
    d = f"[{digits()}]"
    return f"(?:{d}+(?:[.:,\u00ad\u066b\u066c]{d}+)*|(?:[.:,\u00ad\u066b\u066c]{d}+)+)"


def _abbreviations() -> Iterator[tuple[str, Rewrite]]:
    acronym = f"(?:[a-z](?:[.][a-z])*|(?:canada|sino|korean|eu|japan|non)-u[.]s|u[.]s[.]-(?:u[.]k|u[.]s[.]s[.]r))"
    extension = "bat|bmp|c|class|cgi|cpp|dll|doc|docx|exe|gif|gz|h|htm|html|jar|java|jpeg|jpg|mov|mp[34g]|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip|3gp|wm[va]|avi|flv"
    yield f"([a-z])[.]{SPACE}+(?-i:{SENTENCE_STARTS})(?:{SPACE}|[?!\n])", keep
    yield f"((?:{BEFORE_NUMBERS})[.]){SPACE}?[0-9]", keep
    yield f"((?:{MONTHS_AND_DAYS}|{STATES}|{COMPANIES}|{SUFFIXES})[.])[\\s\\S]{{0,2}}", keep
    yield f"((?:{TITLES}|{OTHERS}|{acronym})[.])", keep
    yield f"([a-z0-9]+(?:[.][a-z0-9]+)*[.](?:{extension}))(?:{SPACE}|[.?!,\"'<]|$)", keep
    yield f"({_word()}[.])[,;:\u3001]", plain


def _marks() -> Iterator[tuple[str, Rewrite]]:
    eyes = "[-^x=~<>']"
    yield "(&(?:md|mdash|ndash);|[\u0096\u0097\u2013\u2014\u2015])", constant("--")
    yield "(&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);)", keep
    yield "(&nbsp;)", drop
    yield "(&(?:amp|lt|gt);)", mapped(ENTITIES)
    yield "((?-i:[A-Z]*)[$]|#)", keep
    yield f"([{''.join(CURRENCIES)}])", mapped(CURRENCIES)
    yield "(-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|C[.]D[.]s|pro-|anti-|S&P-500|S&Ls)", keep
    yield f"(cap{APOSTROPHE}n|c{APOSTROPHE}est)", keep
    yield "(\"|&quot;|'')", constant("''")
    yield f"((?-i:[<>]?[:;=][-o*']?[()DPdpO\\\\{{@|\\[\\]]))[^a-z0-9]", bracketed
    yield f"({eyes}_{eyes}|\\({eyes}[_.]?{eyes}\\)|\\([\\^x=~<>']-[\\^x=~<>'`]\\))", bracketed
    yield r"([()\[\]{}])", mapped(BRACKETS)
    yield "(---{1,2})(?!-)", constant("--")
    yield "(-+)", keep
    yield "([.]{3,5}|[\u0085\u2026]|[.](?:[ \u00a0][.]){2,4})", constant("...")
    yield r"(@+|#+|_+|\*+|(?:\\\*){1,3}|[?!]+|<<|>>)", keep
    yield "(')(?:[a-z][^ \t\n\r\u00a0])", keep
    yield f"({APOSTROPHE}(?:[msd]|re|ve|ll)|n{ANY_APOSTROPHE}t)", straight
    yield f"([{QUOTE}]{{1,2}}|{APOSTROPHE})", straight
    yield f"([-.,;:=/+%&~^|\\\\<>@#*$!?_\u0086-\u0089\u0095\u0098\u0099{char_class(expand(SYMBOLS))}])", keep


def _compounds() -> Iterator[tuple[str, Rewrite]]:
    word = "[a-z0-9]+(?:-[a-z]+){0,2}"
    both = letters() + digits()
    hyphenated = "[a-z0-9][a-z0-9.,\u00ad]*(?:-(?:[a-z](?:[.][a-z])+[.]|[a-z0-9\u00ad]+))+"
    french = f"(?:[dol]{ANY_APOSTROPHE}[{both}])?"
    thing = f"{french}[{both}]+(?:{HYPHEN}{french}[{both}]+)*"
    initials = "(?-i:[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)"
    yield f"({word}(?:\\\\?/{word}){{1,2}})", keep
    for pattern in (hyphenated, thing, initials):
        yield f"({pattern}[.])[,;:\u3001]", plain
        yield f"({pattern})", plain
