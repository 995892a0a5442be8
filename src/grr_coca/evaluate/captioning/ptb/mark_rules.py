"""Rules for numbers, addresses, brackets, quotes and symbols. See `tokenizer` for how they compete."""

from collections.abc import Iterator

from grr_coca.evaluate.captioning.ptb.characters import SYMBOLS, char_class, digits, expand
from grr_coca.evaluate.captioning.ptb.rewrite import (
    BRACKETS,
    CURRENCIES,
    ENTITIES,
    FRACTIONS,
    Rewrite,
    bracketed,
    constant,
    drop,
    keep,
    mapped,
    plain,
    straight,
    unbroken,
)
from grr_coca.evaluate.captioning.ptb.word_rules import APOSTROPHE, AUXILIARY, NEGATION, letter

GAP = "[- \u00a0]"
QUOTE = "[`\u2018-\u201f\u0082\u0084\u0091-\u0094\u2039\u203a\u00ab\u00bb]"
BLANK = ' \t\n\f\r"<>|'
"""What no address holds."""


def addresses() -> Iterator[tuple[str, Rewrite]]:
    """Tags, web and mail addresses, names and hashtags."""
    name = "[a-z][a-z0-9_:.-]*"
    value = f"'[^'\r\n]*'|\"[^\"\r\n]*\"|{name}"
    tag = f"{name}(?:[ ]+{name}(?:[ ]*=[ ]*(?:{value}))?)*[ ]*/?"
    yield f"(<(?:[!?][a-z-][^>\r\n]*|{tag}|/{name})[ ]*>)", unbroken

    ending = f"[^{BLANK}.!?(){{}},-]"
    path = f"(?:/[^{BLANK}()]+{ending})?"
    label = "(?-i:[^ \t\n\f\r\"`'|!(){}$0-9A-Z,./:;<=>?@\\[\\]\\\\^_-]+)"  # no capitals, no digits
    yield f"(https?://[^{BLANK}()]+{ending})", keep
    yield f"(www[.](?:[^{BLANK}.!?(){{}},]+[.])+[a-z]{{2,4}}{path})", keep
    yield f"((?:{label}[.])+(?:com|net|org|edu){path})", keep

    host = f"[^{BLANK}(){{}}.\u00a0]+"
    yield f"((?:&lt;|<)?[a-z0-9][^{BLANK}(){{}}\u00a0]*@(?:{host}[.])*{host}(?:&gt;|>)?)", keep
    yield f"(@[a-z_][a-z_0-9]*|#{letter()}+)", keep


def numbers() -> Iterator[tuple[str, Rewrite]]:
    """Dates, numbers and times, fractions, telephone numbers."""
    d = f"[{digits()}]"
    yield f"({d}{{1,2}}[-/]{d}{{1,2}}[-/]{d}{{2,4}})", keep
    joint = f"[.:,\u00ad\u066b\u066c]{d}+"
    yield f"([-+]?(?:{d}+(?:{joint})*|(?:{joint})+))", plain
    yield "([\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+))", keep
    yield f"((?:{d}{{1,4}}{GAP})?{d}{{1,4}}(?:\\\\?/|\u2044){d}{{1,4}})", unbroken
    yield f"([{''.join(FRACTIONS)}\u2155-\u215e])", mapped(FRACTIONS)
    short, exchange, line = "[0-9]{2,4}", "[0-9]{3,4}", "[0-9]{3,5}"
    area = f"\\([0-9]{{2,3}}\\)[ \u00a0]?|\\+{{0,2}}(?:{short}{GAP})?{short}{GAP}"
    yield f"((?:{area}){exchange}{GAP}?{line})", unbroken
    yield f"(\\+{{0,2}}(?:{short}[.])?{short}[.]{exchange}[.]{line})", keep
    yield f"({APOSTROPHE}[0-9][0-9])[ \u00a0\n]", keep


def marks() -> Iterator[tuple[str, Rewrite]]:
    """Everything else."""
    face = "[-^x=~<>']"
    yield "(&(?:md|mdash|ndash);|[\u0096\u0097\u2013\u2014\u2015])", constant("--")
    yield "(&(?:ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);)", keep
    yield "(&nbsp;)", drop
    yield "(&(?:amp|lt|gt);)", mapped(ENTITIES)
    yield "((?-i:[A-Z]*)[$]|#)", keep
    yield f"([{''.join(CURRENCIES)}])", mapped(CURRENCIES)
    yield f"(-(?:[lr][rcs]b)-|c[.]d[.]s|pro-|anti-|s&p-500|s&ls|cap{APOSTROPHE}n|c{APOSTROPHE}est)", keep
    yield "(\"|&quot;|'')", constant("''")
    yield "((?-i:[<>]?[:;=][-o*']?[][()@DPdpO\\\\{|]))[^a-z0-9]", bracketed
    yield f"({face}_{face}|\\({face}[_.]?{face}\\)|\\([\\^x=~<>']-[\\^x=~<>'`]\\))", bracketed
    yield r"([()\[\]{}])", mapped(BRACKETS)
    yield "(---{1,2})(?!-)", constant("--")
    yield "(-+)", keep
    yield "([.]{3,5}|[\u0085\u2026]|[.](?:[ \u00a0][.]){2,4})", constant("...")
    yield r"(@+|#+|_+|\*+|(?:\\\*){1,3}|[?!]+|<<|>>)", keep
    yield "(')(?:[a-z][^ \t\n\r\u00a0])", keep
    yield f"({AUXILIARY}|{NEGATION})", straight
    yield f"({QUOTE}{{1,2}}|{APOSTROPHE})", straight
    yield f"([-.,;:=/+%&~^|\\\\<>@#*$!?_\u0086-\u0089\u0095\u0098\u0099{char_class(expand(SYMBOLS))}])", keep
