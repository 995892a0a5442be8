"""Check that pages say what the ledgers say: `python studies/check.py`; `--write` writes the pages.

Each file of `pages/` is the text of a page with placeholders: `{adamw[test coca]:word}` is *lower*, *higher* or *no
different*, computed from the rows of the setting `adamw`. `claims.txt` defines the settings. A page fails if it differs
from its text with the placeholders filled. A text fails if it has a number or a verdict outside a placeholder, if its
words contradict the settings that it shows (`meaning.py`). What does not come from rows is marked, such as
`{paper[7.15]}`; `plain.txt` lists the sentences of results, README and citation that show no change, and the bold ones
of studies. Ledgers fail if a row differs from its plan or contradicts another.

Nothing of the package is imported.
"""

import difflib
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from changes import Best, Group, Joined, Setting
from ledgers import ROOT, STUDIES, Data, errors_between_rows, errors_of_ledger, plan_of, studies
from meaning import errors_of_meaning
from tables import Plateau, tables

TEXTS = STUDIES / "pages"
WIDTH = 128
PARTS = ("README.md", "CITATION.cff", "CHANGELOG.md")
"""Pages of which a text is only one part."""
GIVEN = re.compile(r"238,391|64 × 64|95 %|better|every|never|smaller|times")
"""Words that `{given[…]}` may have beside a change, on pages outside of `studies`."""

# --- Settings


def read_settings(path: Path = STUDIES / "claims.txt") -> dict[str, Any]:
    """Return the settings of `claims.txt` by name, with what else placeholders may name."""
    known: dict[str, Any] = {name: Quoted() for name in QUOTED}
    known |= tables(known)
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, definition = line.partition(" = ")
            known[name] = _setting(definition, known)
    return known


def _setting(definition: str, known: dict[str, Any]) -> Any:
    """Return a setting from `STUDY ARMS / [STUDY] ARMS`, or one of the forms below."""
    match definition.split():
        case [name, "minus", other]:
            return replace(known[name], minus=known[other])
        case [name, "grown", "from", other]:
            return replace(known[name], earlier=known[other])
        case [name, "seeds", *seeds]:
            return replace(known[name], seeds=[int(seed) for seed in seeds])
        case ["all", "of", *names]:
            return Group({name: known[name] for name in names})
        case ["mean" | "sum" | "each" as how, "of", *names]:
            return Joined(how, [known[name] for name in names])
        case ["models", "of", study]:
            return Plateau(study)
        case ["pairs", "of", pattern, *words]:
            return Data(pattern, " ".join(words[1:]))
        case ["best", "of", names, arms, "/", over]:
            return Best(names.split("+"), (arms, over))
        case [study, "at", "the", "best", "of", curve]:
            ours, theirs = known[curve].best()
            return Setting(study, (ours,), (theirs,), study)
        case [study, arms, "/", *other, over]:
            second = other[0] if other else study
            return Setting(study, arms_of(study, arms), arms_of(second, over), second)
    raise ValueError(f"claims.txt: {definition!r} is not a setting")


def arms_of(study: str, pattern: str) -> tuple[str, ...]:
    """Return the arms of a study whose complete name matches a pattern."""
    found = tuple(arm for arm in plan_of(study)["arms"] if re.fullmatch(pattern, arm))
    assert found, f"{study} has no arm {pattern}"
    return found


# --- Pages

QUOTED = {
    "paper": "numbers that another paper reports",
    "given": "numbers and words that no row can confirm: design choices, definitions, what was seen before a study",
}


class Quoted:
    """Text that is not computed: `{paper[7.15]}` is 7.15."""

    def __getitem__(self, text: str) -> str:
        return text


NUMBER = re.compile(r"(?<![\w@.,-])[−+]?\d[\d,.]*(?:/\d+)?")
WORD = re.compile(
    r"\b(three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|hundreds?|thousands?|millions?|billions?|half|"
    r"thirds?|quarters?|fifths?|twice|doubled?|doubles|halves?|tenfold|times|winners?|agree(s|d)?|reproduced|equally|evidence|"
    r"irrelevant|faster|slower|increases?|decreases?|grows?|shrinks?|drops?|rises?|falls?|gaps?|robust(ly)?|suffers?|good|bad|"
    r"due to|because of|effects?|nothing|every|matters?|should|all settings|clear(ly)?|strong(ly)?|reliabl[ey])\b",
    re.IGNORECASE,
)
"""Words of numbers and of claims; only pages outside of `studies` must mark them."""
VERDICT = re.compile(
    r"\b(better|worse|worst|lower|lowest|higher|highest|ahead|behind|equal|lead(s|ing)?|favou?r(s|ed)?|differ(s|ent|ence|ences)?|"
    r"help(s|ed)?|hurts?|harm(s|ful)?|excludes?|beat(s|en)?|wins?|won|los(es|t|ing)|outperform(s|ed)?|surpass(es|ed)?|"
    r"exceed(s|ed)?|superior|inferior|advantages?|disadvantages?|gain(s|ed)?|improv(es|ed|ement|ements|ing)|undecided|"
    r"significant(ly)?|insignificant|stronger|weaker|dominates?|prefer(s|able|red)?|confirm(s|ed)?|prov(es|ed|en)|"
    r"lowers|raises|raised|lowered|too (?:high|low|slow(?:ly)?|fast|large|small)|"
    r"everywhere|always|never|smaller|larger|worsen(s|ed)?|benefits?|succeed(s|ed)?|fail(s|ed)?)\b",
    re.IGNORECASE,
)


VERDICT_OF_ROWS = r"\{\w+\[test coca\]:(?:all|by)\}"


def texts() -> dict[Path, str]:
    """Return the text of each page by the path of the page."""
    return {
        ROOT / path.relative_to(TEXTS).with_suffix(""): path.read_text(encoding="utf-8")
        for path in sorted(TEXTS.rglob("*.txt"))
    }


def errors_of_text(text: str, words: bool = True) -> Iterator[str]:
    """Yield the numbers, also in `words`, and verdicts of a text that are outside of placeholders, or negated."""
    negated = re.findall(r"(?:\b(?:not|no|never|nor|barely)|n't) \{(?!given|paper)[^{}]*", text)
    yield from (f"a negation before a placeholder: {found}" for found in negated)
    yield from (f"a verdict that is given: {found}" for found in re.findall(r"loss is \{given\[[^{}]*", text))
    fixed = re.sub(r"\{[^{}]*\}", "…", text)
    fixed = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!--.*?-->", "…", fixed, flags=re.DOTALL)
    patterns = [(NUMBER, "a number"), (VERDICT, "a verdict"), *([(WORD, "a claim")] if words else [])]
    for pattern, what in patterns:
        for found in pattern.finditer(fixed):
            around = " ".join(fixed[max(0, found.start() - 40) : found.end() + 30].split())
            yield f"{what} that nothing computes: {found[0]} in {around!r}"


CHANGE = re.compile(r"\{(?!given|paper|share)\w+\[[^] ]+ [^] ]+\]")
"""A placeholder of a change, such as `{adamw[test coca]:word}`."""


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text and the heads of its tables."""
    for block in re.split(r"\n\n+|\n(?=- )", text):
        if block.startswith("|"):
            yield block.partition("\n")[0]
        elif not block.startswith("#"):
            yield from (" ".join(each.split()) for each in re.split(r"(?<=[.?])\**\s(?=[A-Z[*{`])", block))


BOLD = re.compile(r"(?:- )?\*\*(?:\S+ ){3}")
"""The beginning of a bold sentence."""


def errors_of_plain(text: str, is_of_study: bool = False) -> Iterator[str]:
    """Yield sentences that show no change and are not in `plain.txt`, and words that are given beside a change.

    Pages of studies must list bold sentences only: those are their claims.
    """
    listed = (STUDIES / "plain.txt").read_text(encoding="utf-8").splitlines()
    for sentence in sentences(text):
        if is_of_study and (CHANGE.search(sentence) or not BOLD.match(sentence)):
            continue
        if not CHANGE.search(sentence):
            if sentence not in listed:
                yield f"shows no change, and is not in plain.txt: {sentence}"
        else:
            marked = re.findall(r"\{given\[(.*?)\]\}", sentence)
            yield from (f"given beside a change: {each!r}" for each in marked if not GIVEN.fullmatch(each))


def filled(text: str, known: dict[str, Any]) -> str:
    """Return the text of a page with its placeholders filled and its paragraphs wrapped."""
    return "\n".join(_wrapped(text.format_map(known)))


def _wrapped(text: str) -> Iterator[str]:
    """Yield lines of at most `WIDTH` characters. Tables, headings, code and short lines stay as they are."""
    is_code = False
    for line in text.split("\n"):
        is_code ^= line.startswith("```")
        if is_code or len(line) <= WIDTH or line.startswith(("|", "#", "!", "<")):
            yield line
        else:
            indent = re.match(r" *(?:[-*] |\d+\. )?", line)
            assert indent
            joined = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), line)  # code stays on one line
            wrapped = textwrap.wrap(
                joined, WIDTH, subsequent_indent=" " * len(indent[0]), break_long_words=False, break_on_hyphens=False
            )
            yield from (part.replace("\0", " ") for part in wrapped)


def errors_of_page(page: Path, text: str, known: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a page and its text. Of the pages in `PARTS`, the text is only one part."""
    is_of_study = STUDIES in page.parents
    yield from errors_of_text(text, words=not is_of_study)
    yield from errors_of_plain(text, is_of_study)
    yield from errors_of_meaning(text, known)
    yield from differences(page, filled(text, known))


def differences(page: Path, expected: str) -> Iterator[str]:
    """Yield the lines in which a page differs from the text that it should have."""
    found = page.read_text(encoding="utf-8")
    if expected == found or (page.relative_to(ROOT).as_posix() in PARTS and found.count(expected) == 1):
        return
    if page.relative_to(ROOT).as_posix() in PARTS:
        yield from (f"lacks: {line}" for line in expected.splitlines() if line not in found.splitlines())
        yield "the lines of its text are not one part of it"
        return
    lines = difflib.unified_diff(found.splitlines(), expected.splitlines(), n=0, lineterm="")
    yield from (
        f"{'the rows give' if line[0] == '+' else 'the page has'}: {line[1:]}"
        for line in list(lines)[2:]
        if line[0] != "@"
    )


def write_page(page: Path, text: str, known: dict[str, Any]) -> None:
    """Write a page as the rows give it. In `PARTS`, the part from the first to the last line is replaced."""
    expected = filled(text, known)
    if page.relative_to(ROOT).as_posix() in PARTS:
        found = page.read_text(encoding="utf-8")
        first, last = expected.splitlines()[0], expected.splitlines()[-1]
        start = found.index(first)
        expected = found[:start] + expected + found[found.index(last, start) + len(last) + 1 :]
    page.write_text(expected, encoding="utf-8")


def main() -> int:
    """Print what is wrong and return 1 if anything is; with `--write`, write the pages first.

    Pages are checked if the ledgers that they are computed from are sound.
    """
    wrong = [error for study in studies() for error in errors_of_ledger(study)] or [*errors_between_rows()]
    wrong = wrong or [*_errors_of_pages("--write" in sys.argv)]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return bool(wrong)


ODD = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What settings and placeholders raise that name what there is not."""


def _errors_of_pages(is_written: bool) -> Iterator[str]:
    try:
        known = read_settings()
    except ODD as error:
        yield f"studies/claims.txt: cannot be computed: {type(error).__name__}: {error}"
        return
    for page, text in texts().items():
        name = page.relative_to(ROOT).as_posix()
        try:
            if is_written:
                write_page(page, text, known)
            yield from (f"{name}: {error}" for error in errors_of_page(page, text, known))
        except ODD as error:
            yield f"{name}: cannot be computed: {type(error).__name__}: {error}"
    yield from sorted(unsaid())
    yield from (f"{page.relative_to(ROOT)}: has no text in studies/pages" for page in pages_without_text())


def unsaid() -> Iterator[str]:
    """Yield what no page says: lines of `plain.txt`, and settings of `claims.txt` that pages should show."""
    said = {sentence for text in texts().values() for sentence in sentences(text)}
    lines = (STUDIES / "plain.txt").read_text(encoding="utf-8").splitlines()
    yield from (f"plain.txt: no page says {line!r}" for line in lines if line and line[0] != "#" and line not in said)
    of_page = {page.relative_to(ROOT).as_posix(): text for page, text in texts().items()}
    answer = {*re.findall(VERDICT_OF_ROWS, of_page["docs/results.md"].partition("| training |")[0])}
    for part in PARTS:
        lacking = answer - {*re.findall(VERDICT_OF_ROWS, of_page[part])}
        yield from (f"{part}: lacks a verdict of the answer: {verdict}" for verdict in sorted(lacking))
    claims = (STUDIES / "claims.txt").read_text(encoding="utf-8")
    main = claims.partition("# Only on pages of studies.")[0]
    outside = [text for page, text in texts().items() if STUDIES not in page.parents]
    for part, pages, where in ((claims, texts().values(), "page"), (main, outside, "page outside of studies")):
        defined = dict(re.findall(r"^(\w+) = (.*)$", part, re.MULTILINE))
        shown = {*re.findall(r"\w+", " ".join(re.findall(r"\{[^{}]*\}", "\n".join(pages))))}
        for name in reversed(defined):  # a setting is defined after those that it is made of
            shown |= {*re.findall(r"\w+", defined[name])} if name in shown else set()
        yield from (f"claims.txt: no {where} shows {name}" for name in defined if name not in shown)


def pages_without_text() -> list[Path]:
    """Return the pages of studies whose text is missing."""
    return sorted({*STUDIES.rglob("README.md")} - {*texts()})


if __name__ == "__main__":
    sys.exit(main())
