"""Check that sentences and tables speak of the settings that they show.

A placeholder is always a true number. But of which setting, metric and split? Words around it must agree with the rows
that it is computed from: optimizer, model, steps, seeds, metric, split and the study that a row of a table links to.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from changes import Best, Group, Joined, Setting

PLACEHOLDER = re.compile(r"\{(\w+)(?:\[([^\]]*)\])?(?::([^}]*))?\}")
METRICS = {
    "refitted": "refitted",
    "contrastive": "[Cc]ontrastive loss",
    "perplexity": "[Pp]erplexity",
    "R@1": r"R@1\b",
    "R@10": r"R@10\b",
    "coca": r"CoCa loss|\b[Ll]oss(?:es)?\b",
}
SPLITS = {
    "known": r"`val` and `test`|[Kk]nown styles",
    "val": "`val`",
    "test": "`test`",
    "style": r"emojione|unseen style|left out|lacks|families|^style$",
    "concept": "concepts",
    "training": "in training",
    "tuned": "[Aa]fter (?:each )?fine-tun|fine-tuned|after stages",
}
OPTIMIZERS = {"adamw": r"\bAdamW\b(?!'s)", "muon": r"\bMuon\b(?!'s)"}
MODELS = {"GRR-CoCa": "grr", "Baseline CoCa": "baseline"}
MODEL = "(GRR-CoCa|Baseline CoCa)"
ITSELF = rf"{MODEL}(?:'s [\w ]+)? (?:over|than|to|against|and|from) (?:that of )?\1(?!\w)"
IN_PARENTHESES = r" ?%? ?\((?:over seeds and drawings )?"
INTERVALS = {"ci": IN_PARENTHESES, "both": IN_PARENTHESES, "falls": r"[^.]*\ba fall in ", "rises": r"[^.]*\ba rise in "}
ORDERS = {"backwards": ("baseline", "grr"), "losses": ("baseline", "grr"), "values": ("grr", "baseline")}
"""Models in the order in which a format gives their values."""
PARTS = {"geglu": "GEGLU", "rope": "RoPE", "rms": "RMSNorm"}
"""Words between a change and what belongs to it, by format."""
PROSE = 6
"""Words in a cell of a table above which it is read as a sentence."""
FACTS = {"steps": "steps", "n": "seeds", "seeds": "seeds", "passes": "passes", "patches": "patches"}
"""Formats of facts about runs, with their units."""
UNIT = r"\b(steps|epochs|seeds|passes|patches|drawings|images|runs|settings|models|minutes|hours)\b"
CLAUSE = r"[,;:.()|]|\b(?:and|or|but|than|while)\b"
PERCENT, COUNT = r"\*{0,2} %", r"(?! (?!seeds)\w+s\b)"
FOLLOWS = {
    **dict.fromkeys(("range", "whole", "size", "pair", "backwards"), PERCENT),
    **dict.fromkeys(("falls", "rises"), COUNT),
    "contains": " (?:it|the paper's|the fall of)",
    "excludes": r"(?!.*\binside)",
}
"""Words that complete a format."""
UNCOMPUTED = re.compile(
    r"\b(?:not|no|nor|none|never|nothing|neither|nobody|cannot|hardly|barely|scarcely|shown|proven?)\b|n't|"
    r"\b(?:far|much|slightly|somewhat|about|around|roughly|nearly|almost|over|under|at least|at most|more than|"
    r"less than|just|even|(?!only)\w+ly) (?=\0)"
)
"""Negations, words of proof, and words of degree before a change (as NUL): only rows may say this of a change."""


@dataclass(frozen=True)
class Shown:
    """A placeholder of a setting: `{adamw[test coca]:by}`, or `{adamw:steps}` with neither split nor metric."""

    text: str
    setting: Any
    split: str
    metric: str
    format: str
    start: int
    end: int

    def parts(self) -> list[Setting]:
        """Return the settings of arms that it is computed from."""
        return _parts(self.setting)

    def optimizers(self) -> set[str]:
        """Return the optimizers of all arms."""
        return {recipe["optimizer"]["name"] for part in self.parts() for recipe in part.recipes()}


def _parts(setting: Any) -> list[Setting]:
    match setting:
        case Setting():
            others = [other for other in (setting.minus, setting.earlier) if other is not None]
            return [setting, *(part for other in others for part in _parts(other))]
        case Joined():
            return [part for each in setting.settings for part in _parts(each)]
        case Group():
            return [part for each in setting.settings.values() for part in _parts(each)]
        case _:
            return _parts(setting.at(setting.best()))


def shown(text: str, known: Mapping[str, Any]) -> list[Shown]:
    """Return the placeholders of settings in a text. `{family[test coca]:use adamw}` is of `adamw`."""
    found = []
    for match in PLACEHOLDER.finditer(text):
        setting, asked, form = known.get(match[1]), match[2] or "", match[3] or ""
        if isinstance(setting, (Setting, Joined, Group, Best)):
            name = form.split()[-1] if form else ""
            if isinstance(setting, Group) and name in setting.settings:
                setting, form = setting.settings[name], form.split()[0]
            split, _, metric = asked.partition(" ")
            split = re.split("[#@]", split)[0].replace("test_style", "style")
            found.append(Shown(match[0], setting, split, metric, form, match.start(), match.end()))
    return found


def _plain(text: str) -> str:
    """Return the text with placeholders and targets of links blanked; places stay."""
    return re.sub(r"\{[^{}]*\}|\]\([^)]*\)", lambda found: " " * len(found[0]), text)


def errors_of_meaning(text: str, known: Mapping[str, Any]) -> Iterator[str]:
    """The placeholders that the words around them contradict, one line each."""
    title = text.partition("\n")[0]
    for section in re.split(r"\n(?=#)", text):
        before = title + "\n"
        if "\n|" in section:
            yield from _errors_of_groups(section, known)
        for block in re.split(r"\n\n+(?=\|)|(?<=\|)\n\n+|\n\n+|\n(?=\s*[-*] |\d+\. )", section):
            if block.lstrip().startswith("|"):
                yield from _errors_of_table(block, before, known)
            else:
                yield from _errors_of_words(block, known)
                for sentence in re.split(r"(?<=[.;:?])\**\s(?=[A-Z[*{`])", block):
                    yield from _errors_of_sentence(sentence, before, known)
                    before += sentence


# --- Sentences


def _errors_of_words(block: str, known: Mapping[str, Any]) -> Iterator[str]:
    """Metric and split are those named last before a placeholder, or next; if none is, the CoCa loss on `test`."""
    plain = _plain(block)
    for each in shown(block, known):
        if not each.metric:
            continue
        ahead = re.split(r"[.;]\s", plain[each.end :])[0][:80]
        for words, mine, usual in ((METRICS, each.metric, "coca"), (SPLITS, each.split, "test")):
            last = [*_named(words, plain[: each.start])][-1:]
            if mine not in (last or [usual]) and mine not in [*_named(words, ahead)][:1]:
                yield f"{each.text} is of {mine!r}, after the words {last or 'none'} in {_around(block, each)}"


def _named(words: Mapping[str, str], text: str) -> Iterator[str]:
    """Names whose words occur in a text, in order."""
    pattern = "|".join(f"({found})" for found in words.values())
    for match in re.finditer(pattern, text):
        assert match.lastindex
        yield [*words][match.lastindex - 1]


def _around(text: str, each: Shown) -> str:
    return repr(" ".join(text[max(0, each.start - 60) : each.end].split()))


def _errors_of_sentence(sentence: str, before: str, known: Mapping[str, Any]) -> Iterator[str]:
    found, plain = shown(sentence, known), _plain(sentence)
    yield from _errors_of_optimizers(sentence, _plain(before), found)
    yield from _errors_of_facts(plain, found)
    yield from _errors_of_features(plain, _plain(before), found)
    yield from _errors_of_parts(plain, found)
    yield from _errors_of_lists(found)
    for part, whole in re.findall(r"\{(\w+)\} of \{(\w+)\}", sentence):
        if int(f"{known[part]}".replace(",", "")) > int(f"{known[whole]}".replace(",", "")):
            yield f"{{{part}}} is more than {{{whole}}}"
    yield from _errors_of_claims(sentence, found)
    yield from _errors_of_models(plain, found)
    yield from _errors_of_intervals(sentence, found)


def _errors_of_models(plain: str, found: Sequence[Shown]) -> Iterator[str]:
    """The model before a change is on its left side, the one after *than* on its right: `GRR-CoCa's CoCa loss is …`."""
    yield from (f"compares a model with itself: {each[0]!r}" for each in re.finditer(ITSELF, plain))
    yield from ("GRR-CoCa has no learned positions" for _ in re.finditer("GRR-CoCa's learned positions", plain))
    for each in found:
        parts = each.parts()
        if each.metric and not any(part.minus or part.earlier for part in parts):
            before, after = plain[: each.start], plain[each.end :]
            over = re.findall(f"{MODEL} over {MODEL}", before)[-1:]
            owner = re.findall(
                rf"(?<!than ){MODEL}(?:'s (?:\w+ )?(?:loss|perplexity|is|changes)| with Muon is)\b", before
            )
            than = re.findall(rf"^\W*than (?:that of )?{MODEL}", after)
            side = re.findall(rf"^ (?:with|for) {MODEL}", after) if each.format.startswith("loss") else []
            row = re.findall(f"^{MODEL},", before)
            left = [pair[0] for pair in over] or owner[-1:] or row or side * (each.format == "loss")
            right = [pair[1] for pair in over] or than or side * (each.format == "loss over")
            arms = [arm for part in parts for arm in part.arms], [arm for part in parts for arm in part.over]
            for models, own in zip((left, right), arms, strict=True):
                if models and not all(arm.startswith(MODELS[models[0]]) for arm in own):
                    yield f"{each.text} is of {', '.join(own)}, not of {models[0]}"
            both = re.findall(f"{MODEL} (?:to|and|against) {MODEL}", before)[-1:]
            if each.format in ORDERS and both and tuple(MODELS[model] for model in both[0]) != ORDERS[each.format]:
                yield f"{each.text} has the values of the models in another order than {both[0]}"


def _errors_of_intervals(sentence: str, found: Sequence[Shown]) -> Iterator[str]:
    """An interval in parentheses after a change is that of the change, and so is the count of seeds that agree."""
    for each in found:
        verbs = re.findall(r"\b(falls|rises)\b|\b(?:[Aa] |with )(fall|rise)s? in\b", sentence[: each.start])
        if each.format in ("falls", "rises") and verbs and "".join(verbs[-1]).removesuffix("s") != each.format[:-1]:
            yield f"{each.text} counts {each.format}, after the word {''.join(verbs[-1])!r}"
    for last, each in pairwise(each for each in found if each.metric):
        between = sentence[last.end : each.start]
        if re.fullmatch(INTERVALS.get(each.format, "-"), between) and not isinstance(last.setting, Best):
            same = (last.setting, last.split, last.metric) == (each.setting, each.split, each.metric)
            if not same and not isinstance(each.setting, Best):
                yield f"{each.text} is not the interval of {last.text}"


def _errors_of_optimizers(sentence: str, before: str, found: Sequence[Shown]) -> Iterator[str]:
    """An optimizer that is named has a setting; settings with one optimizer are of one that is named."""
    named = {*_named(OPTIMIZERS, _plain(sentence))}
    used = set().union(*(each.optimizers() for each in found))
    changes = [each for each in found if each.metric]
    if changes and named - used:
        yield f"names {', '.join(sorted(named - used))}, but shows {', '.join(sorted(used))}: {changes[0].text}"
    for each in found:
        after = re.match(r"[^{}.;,(]{0,20}\bwith (?:AdamW|Muon)\b(?!'s)", sentence[each.end :])
        if after and len(each.optimizers()) == 1 and {*_named(OPTIMIZERS, after[0])} != each.optimizers():
            yield f"{each.text} is of {each.optimizers().pop()}, before {after[0]!r}"
        sides = re.findall(f"{MODEL} with (AdamW|Muon)", sentence)
        if isinstance(each.setting, Setting) and len(sides) == 2 and len(each.optimizers()) == 2:
            own = [recipe["optimizer"]["name"] for recipe in each.setting.recipes()]
            if [optimizer.lower() for _, optimizer in sides] != [own[0], own[-1]]:
                yield f"{each.text} is of {own[0]} over {own[-1]}, in words on {sides}"
    named = named or {*_named(OPTIMIZERS, before)}
    for each in changes:
        if named and len(each.optimizers()) == 1 and not each.optimizers() <= named:
            yield f"{each.text} is of {each.optimizers().pop()}, in words on {', '.join(sorted(named))}"


def _errors_of_facts(plain: str, found: Sequence[Shown]) -> Iterator[str]:
    """Steps and seeds are those of a change in the same clause, or else in the sentence; what follows is their unit."""
    ends = [match.start() for match in re.finditer(CLAUSE, plain)]
    clauses = [sum(end < each.start for end in ends) for each in found]
    changes = [
        (place, part) for place, each in zip(clauses, found, strict=True) if each.metric for part in each.parts()
    ]
    for place, each in zip(clauses, found, strict=True):
        if each.metric or each.format not in FACTS or not changes:
            continue
        before, after = ([other for other, _ in changes if is_side(other)] for is_side in (place.__ge__, place.__le__))
        near = {place} if place in before else {*before[-1:], *after[:1]}
        parts = [part for other, part in changes if other in near]
        values = {f"{part:{each.format}}" for part in parts}
        if f"{each.setting:{each.format}}" not in values:
            yield f"{each.text} is {each.setting:{each.format}}, but the settings shown have {sorted(values)}"
        places = [*(other.start for other in found), *ends, len(plain)]
        unit = re.search(UNIT, plain[each.end : min(place for place in places if place >= each.end)])
        if unit and unit[1] != FACTS[each.format]:
            yield f"{each.text} is a number of {FACTS[each.format]}, before {unit[1]!r}"


def _errors_of_features(plain: str, before: str, found: Sequence[Shown]) -> Iterator[str]:
    """A captioning pooler or a recipe of our own is named where runs have it, and said of runs that have it."""
    changes = [each for each in found if each.metric and not isinstance(each.setting, Group)]
    for word, (said, has) in FEATURES.items():
        having = [each for each in changes if any(map(has, each.parts()))]
        if having and not re.search(word, before + plain):
            yield f"{having[0].text} has a {word}, which no word says"
        if changes and not having and re.search(said, re.sub(f"[Ww]ithout (?:a |the )?{word}", "", plain)):
            yield f"{changes[0].text} has no {word}, but the words say so"


FEATURES: dict[str, tuple[str, Callable[[Setting], bool]]] = {
    "pooler": (
        r"captioning pooler|\b[Ww]ith (?:a |the )?pooler",
        lambda part: any("pooler" in arm for arm in (*part.arms, *part.over)),
    ),
    "standard": ("^$", lambda part: any("standard" in arm for arm in (*part.arms, *part.over))),
    "recipe": (
        "our own recipe|by our own",
        lambda part: any("plus" in arm for arm in (*part.arms, *part.over)),
    ),
}
"""What distinguishes runs, by a word that must be near: words that say so, and whether a setting has it."""


def _errors_of_lists(found: Sequence[Shown]) -> Iterator[str]:
    """As many rates as changes are in their order."""
    changes = [each for each in found if each.metric]
    for form in ("rate", "steps"):
        facts = [each for each in found if not each.metric and each.format == form]
        settings = [[id(each.setting) for each in some] for some in (facts, changes)]
        if len(facts) == len(changes) > 1 and sorted(settings[0]) == sorted(settings[1]) and settings[0] != settings[1]:
            yield f"{facts[0].text} and those after it are in another order than their changes"


def _errors_of_parts(plain: str, found: Sequence[Shown]) -> Iterator[str]:
    """A change by one part belongs to the part that is named last before it."""
    for each in found:
        parts = [_part_of(part) for part in each.parts()] if each.metric else []
        own = parts[0] if len({*parts}) == 1 else None
        names = "|".join(PARTS.values())
        named = re.findall(f"^ with ({names})", plain[each.end :]) or re.findall(names, plain[: each.start])[-1:]
        if own and named and named[0] != PARTS[own]:
            yield f"{each.text} is of {PARTS[own]}, but the word beside it is {named[0]}"


def _part_of(setting: Setting) -> str | None:
    """Return the only part that all arms have and that no arm has that they are compared with, which have no other."""
    having = [
        [{part for part in PARTS if part in arm or arm.startswith("grr")} for arm in arms]
        for arms in (setting.arms, setting.over)
    ]
    added = set.intersection(*having[0]) - set[str]().union(*having[1])
    others = set[str]().union(*having[1]) - set[str]().union(*having[0])
    return added.pop() if len(added) == 1 and not others else None


def _errors_of_claims(sentence: str, found: Sequence[Shown]) -> Iterator[str]:
    """What is said of a change is in its placeholder: no negation, proof or degree beside it; its unit follows it."""
    if not any(each.metric for each in found):
        return
    marked, is_row = sentence, "|" in sentence
    for each in found:
        if each.metric:
            marked = marked[: each.start] + "\0" * (each.end - each.start) + marked[each.end :]
            if not is_row and not re.match(FOLLOWS.get(each.format, ""), sentence[each.end :]):
                yield f"{each.text} is completed by {sentence[each.end : each.end + 15]!r}"
            own = re.search("#(flag|other)s", each.text)
            words = re.findall("flag|other", re.split(r"\{\w+\[", sentence[each.end :])[0])
            if own and words and words[0] != own[1]:
                yield f"{each.text} is completed by {sentence[each.end : each.end + 25]!r}"
    yield from (f"said of a change, not computed: {word[0]!r}" for word in UNCOMPUTED.finditer(_plain(marked)))


# --- Tables


def _errors_of_groups(section: str, known: Mapping[str, Any]) -> Iterator[str]:
    """A section with a table shows each setting of a group that its bold words judge or that its figure counts."""
    bold = " ".join(re.findall(r"\*\*[^*]+\*\*", section))
    seen = {(id(each.setting), each.split, each.metric) for each in shown(section, known)}
    for group in shown(bold, known):
        if isinstance(group.setting, Group) and group.metric and not section.startswith("# "):
            for name, setting in group.setting.settings.items():
                if (id(setting), group.split, group.metric) not in seen:
                    yield f"{group.text} is of {name}, too, which the section does not show"
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    in_rows = {id(each.setting) for each in shown(table, known) if each.metric}
    for figure in shown(" ".join(re.findall(r"!\[.*?\]", section)), known):
        for name, setting in figure.setting.settings.items() if isinstance(figure.setting, Group) else ():
            if id(setting) not in in_rows:
                yield f"{figure.text} counts {name}, which has no row"


def _errors_of_table(table: str, before: str, known: Mapping[str, Any]) -> Iterator[str]:
    """Rows repeat one pattern of settings; each column, or each row, asks for one thing, which its heads name."""
    found = [line for line in table.splitlines() if line.startswith("|")]
    yield from (f"compares a model with itself: {each[0]!r}" for each in re.finditer(ITSELF, found[0]))
    if len(found) < 2 or not re.fullmatch(r"[|:\- ]+", found[1]):
        yield f"a table without a head: {found[0][:80]!r}"
        return
    head, _, *lines = ([cell.strip() for cell in re.split(r"\|(?![^{}]*\})", line)[1:-1]] for line in found)
    rows = [[[each for each in shown(cell, known) if each.metric] for cell in cells[1:]] for cells in lines]
    if not lines:
        return
    for title, *cells in zip(head, *lines, strict=True):
        for each in shown(" ".join(cells), known):
            unit = re.fullmatch(UNIT, title)
            if unit and not each.metric and each.format in FACTS and FACTS[each.format] != unit[1]:
                yield f"{each.text} is in the column {title!r}"
    if any(len(_plain(cell).split()) > PROSE for cells in lines for cell in cells[1:]):
        for cells in lines:
            yield from _errors_of_words(" | ".join(cells), known)
        return
    if not re.search("%", f"{found[0]}{before.splitlines()[-1]}") and re.search(r":(?:cell|bare|ci|both)\}", table):
        yield f"a table of changes whose head has no %: {found[0][:80]!r}"
    patterns = [tuple(map(_first_places(row).__getitem__, map(str, _settings(row)))) for row in rows]
    several = [pattern for pattern in patterns if len(pattern) > 1]
    usual = max(several, key=lambda pattern: (several.count(pattern), not any(pattern)), default=())
    asks = [[{(each.split, each.metric, each.format) for each in cell} for cell in row] for row in rows]
    by_column = [set().union(*column) for column in zip(*asks, strict=True)]
    for cells, row, pattern in zip(lines, rows, patterns, strict=True):
        line = " | ".join(cells)
        if len(pattern) > 1 and pattern != usual and any(pattern + usual):
            yield f"a row has other settings than its neighbours: {line[:100]!r}"
        own = {(each.split, each.metric) for cell in row for each in cell}
        if len(own) > 1 and any(len(column) > 1 for column in by_column):
            yield f"neither rows nor columns ask for one thing: {line[:100]!r}"
        yield from _errors_of_sentence(line, before + " ".join(head), known)
        link = re.match(r"\[.*?\]\((?:\.\./studies/)?([\w/.]+)/README\.md\)", cells[0])
        studies = {part.study for cell in row for each in cell for part in each.parts()}
        if link and studies and not any(link[1] in study for study in studies):
            yield f"links to {link[1]}, but shows {', '.join(sorted(studies))}"
        for title, cell in zip(head[1:], row, strict=True):
            for each in cell:
                for words, mine in ((METRICS, each.metric), (SPLITS, each.split)):
                    named = [[*_named(words, _plain(text))] for text in (title, cells[0], head[0])]
                    if mine not in next(filter(None, named), [mine]):
                        yield f"{each.text} is of {mine!r}, in a cell on {named}"
                yield from _errors_of_column(title, each)


def _errors_of_column(title: str, each: Shown) -> Iterator[str]:
    """The head of a column names the optimizer and the model of its losses."""
    optimizers, models = {*_named(OPTIMIZERS, title)}, re.findall(MODEL, title)
    sides = {"loss": "arms", "loss over": "over"}
    arms = (
        getattr(each.setting, sides[each.format]) if each.format in sides and isinstance(each.setting, Setting) else ()
    )
    parts, own = re.findall("|".join(PARTS.values()), title), each.parts()
    if len(parts) == 1 and len(own) == 1 and parts[0] != PARTS.get(_part_of(own[0]) or "", parts[0]):
        yield f"{each.text} is of another part than the column {title!r}"
    if re.search("R@", title) and each.format in ORDERS and not re.search(_in_order(each.format), title):
        yield f"{each.text} has the models in another order than the column {title!r}"
    is_other = len(models) == 1 and not all(arm.startswith(MODELS[models[0]]) for arm in arms)
    if is_other or (optimizers and not each.optimizers() <= optimizers):
        yield f"{each.text} is in the column {title!r}"


def _in_order(format: str) -> str:
    return " to ".join(next(name for name, start in MODELS.items() if start == model) for model in ORDERS[format])


def _settings(row: Sequence[Sequence[Shown]]) -> list[Any]:
    return [each.setting for cell in row for each in cell]


def _first_places(row: Sequence[Sequence[Shown]]) -> dict[str, int]:
    """Return the number of each setting of a row, in order of appearance."""
    return {name: i for i, name in enumerate(dict.fromkeys(map(str, _settings(row))))}
