"""Check that sentences and tables speak of the settings that they show.

A placeholder is always a true number. But of which setting, metric and split? Words around it must agree with the rows
that it is computed from: optimizer, model, steps, seeds, metric, split and the study that a row of a table links to.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
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
    "tuned": "fine-tun",
}
OPTIMIZERS = {"adamw": r"\bAdamW\b(?!'s)", "muon": r"\bMuon\b(?!'s)"}
MODELS = {"GRR-CoCa": "grr", "Baseline CoCa": "baseline"}
MODEL = "(GRR-CoCa|Baseline CoCa)"
ITSELF = rf"{MODEL}(?:'s [\w ]+)? (?:over|than|to|against|and|from) (?:that of )?\1(?!\w)"
IN_PARENTHESES, IN_SEEDS = r" ?%? ?\((?:over seeds and drawings )?", r"[^.]*\ba (?:fall|rise) in "
INTERVALS = {"ci": IN_PARENTHESES, "both": IN_PARENTHESES, "falls": IN_SEEDS, "rises": IN_SEEDS}
"""Words between a change and what belongs to it, by format."""
PROSE = 6
"""Words in a cell of a table above which it is read as a sentence."""
FACTS = ("steps", "n", "seeds", "passes", "patches")


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
    """The text with placeholders and targets of links blanked; places stay."""
    return re.sub(r"\{[^{}]*\}|\]\([^)]*\)", lambda found: " " * len(found[0]), text)


def errors_of_meaning(text: str, known: Mapping[str, Any]) -> Iterator[str]:
    """Yield the placeholders that the words around them contradict, one line each."""
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
    yield from _errors_of_facts(found)
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


def _errors_of_intervals(sentence: str, found: Sequence[Shown]) -> Iterator[str]:
    """An interval in parentheses after a change is that of the change, and so is the count of seeds that agree."""
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


def _errors_of_facts(found: Sequence[Shown]) -> Iterator[str]:
    """Steps and seeds are those of a setting whose change is shown beside them."""
    parts = [part for each in found if each.metric for part in each.parts()]
    for each in found:
        if parts and not each.metric and each.format in FACTS:
            values = {f"{part:{each.format}}" for part in parts}
            if f"{each.setting:{each.format}}" not in values:
                yield f"{each.text} is {each.setting:{each.format}}, but the settings shown have {sorted(values)}"


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
    if any(len(_plain(cell).split()) > PROSE for cells in lines for cell in cells[1:]):
        for cells in lines:
            yield from _errors_of_words(" | ".join(cells), known)
        return
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
    is_other = len(models) == 1 and not all(arm.startswith(MODELS[models[0]]) for arm in arms)
    if is_other or (optimizers and not each.optimizers() <= optimizers):
        yield f"{each.text} is in the column {title!r}"


def _settings(row: Sequence[Sequence[Shown]]) -> list[Any]:
    return [each.setting for cell in row for each in cell]


def _first_places(row: Sequence[Sequence[Shown]]) -> dict[str, int]:
    """The number of each setting of a row, in order of appearance."""
    return {name: i for i, name in enumerate(dict.fromkeys(map(str, _settings(row))))}
