"""Maps from the icons of one set to those of another: what people decided, and whether a table of theirs is right.

The format is JSON: `{"format": 1, "icons": {"lucide:x": "tabler:x", "lucide:y": null}}`, where null means that there is
no equivalent. A flat object and a CSV of two columns are read too.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from grr_coca.common.errors import UserError, on_one_line
from grr_coca.common.files import read_whole
from grr_coca.data.sources.base import decode_text
from grr_coca_icons.match.candidates import Candidate, PictureMatch, PictureSet, match_pictures
from grr_coca_icons.match.match_numbers import Numbers

FORMAT = 1
IconMap = dict[str, str | None]
"""Full names of icons, and of their equivalents; None: there is none."""

_WRONG = 0.1
"""An entry looks wrong if it is the equivalent with at most this probability …"""
_LIKELY = 0.5
"""… and another icon is it with at least this one."""


def read_map(path: Path) -> IconMap:
    """Read a map.

    Raises:
        UserError: the file is in no format of a map, or is that of a newer version.
    """
    text = decode_text(read_whole(path), str(path))
    if path.suffix.lower() in (".csv", ".tsv"):
        return _of_table(text, path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if isinstance(content, dict) and isinstance(content.get("icons"), dict) and "format" in content:
        if content["format"] != FORMAT:
            raise UserError(f"{path}: a map of format {content['format']!r}; this version reads {FORMAT}")
        content = content["icons"]
    if not isinstance(content, dict) or not content:
        raise UserError(f'{path}: not a map of icons; expected {{"format": 1, "icons": {{"lucide:x": "tabler:x"}}}}')
    for name, equivalent in content.items():
        if equivalent is not None and not isinstance(equivalent, str):
            raise UserError(f"{path}: '{on_one_line(name)}': expected the name of an icon, or null for none")
    return {on_one_line(name): equivalent and on_one_line(equivalent) for name, equivalent in content.items()}


def _of_table(text: str, path: Path) -> IconMap:
    rows = list(csv.reader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if not rows or any(len(row) < 2 for row in rows):
        raise UserError(f"{path}: expected two columns: an icon, and its equivalent")
    if {cell.lower() for cell in rows[0][:2]} & {"from", "source", "icon", "to", "target"}:
        rows = rows[1:]
    return {on_one_line(row[0]): on_one_line(row[1]) or None for row in rows}


def write_map(icons: Mapping[str, str | None]) -> str:
    """The text of a map, in the order of its names."""
    return json.dumps({"format": FORMAT, "icons": dict(sorted(icons.items()))}, indent=1, ensure_ascii=False) + "\n"


def decided_matches(
    decided: IconMap, source: PictureSet, target: PictureSet, where: str, further: "Mapping[str, str] | None" = None
) -> dict[int, PictureMatch]:
    """The matches that a map has decided, by the place in the source. Entries of other icons are ignored.

    Args:
        decided: the map.
        source: where its icons are.
        target: where their equivalents are.
        where: the file of the map, for messages.
        further: aliases of the target, and the names of their icons.

    Raises:
        UserError: the map is of other sets, or names an equivalent that does not exist.
    """
    found: dict[int, PictureMatch] = {}
    for name, equivalent in decided.items():
        place = source.places.get(name)
        if place is None:
            continue
        if equivalent is None:
            found[place] = PictureMatch(name=name, place=place, candidates=(), is_decided=True)
            continue
        there = target.places.get((further or {}).get(equivalent, equivalent))
        if there is None:
            near = _nearest(equivalent, target)
            hint = f"; did you mean '{near}'?" if near else f" in {', '.join(set_prefixes(target.names))}"
            raise UserError(f"{where}: '{name}': there is no '{equivalent}'{hint}")
        candidate = Candidate(name=target.names[there], place=there, probability=1.0, score=0.0, same_name=False)
        found[place] = PictureMatch(name=name, place=place, candidates=(candidate,), is_decided=True)
    if decided and not found:
        first = next(iter(decided.items()))
        raise UserError(
            f"{where}: a map of other icons: none of its {len(decided):,} is in "
            f"{', '.join(set_prefixes(source.names))} "
            f"(the first is {first[0]} → {first[1]})"
        )
    return found


def _nearest(name: str, side: PictureSet) -> str | None:
    near = get_close_matches(name, side.names, n=1, cutoff=0.5)
    return near[0] if near else None


def set_prefixes(names: Sequence[str]) -> list[str]:
    """Return the prefixes of the sets that full names belong to, at most six."""
    return sorted({name.partition(":")[0] for name in names})[:6]


# --- Checking a table


@dataclass(frozen=True, kw_only=True)
class UnknownIcon:
    """An entry of a table that names an icon that does not exist.

    Attributes:
        icon: The entry's icon, as written.
        equivalent: Its equivalent, as written, or None if the table says that there is none.
        name: Full name of the one that does not exist.
        nearest: The most similar name of the set, or None.
        sets: Prefixes of the sets in which it was looked up.
    """

    icon: str
    equivalent: str | None
    name: str
    nearest: str | None
    sets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DoubtfulEntry:
    """An entry of a table for which another equivalent is likelier.

    Attributes:
        icon: The entry's icon, as written.
        equivalent: Its equivalent, as written, or None if the table says that there is none.
        probability: Probability of the entry's equivalent, or None if it has none.
        likelier: Name of the likeliest icon.
        likelier_probability: Probability of that icon.
    """

    icon: str
    equivalent: str | None
    probability: float | None
    likelier: str
    likelier_probability: float


def check_map(
    table: IconMap,
    source: PictureSet,
    target: PictureSet,
    numbers: Numbers | None,
    aliases: "tuple[Mapping[str, str], Mapping[str, str]]" = ({}, {}),
) -> list[UnknownIcon | DoubtfulEntry]:
    """Find the entries of a table that look wrong, in the order of the table.

    These are names that do not exist, equivalents that look wrong, and icons without one that have one. Names without a
    prefix are those of the first set. Where the equivalent is not among the likely ones, but another icon is, the entry
    is doubtful.

    Args:
        table: the entries.
        source: the icons.
        target: their equivalents.
        numbers: of the model; None: only names are checked.
        aliases: further names of the icons of both, and the full names of their icons.
    """
    findings: dict[str, list[UnknownIcon | DoubtfulEntry]] = {icon: [] for icon in table}
    asked: dict[int, tuple[str, str | None, int | None]] = {}
    for icon, equivalent in table.items():
        place = _place(icon, source, aliases[0])
        there = None if equivalent is None else _place(equivalent, target, aliases[1])
        for name, found, side in ((icon, place, source), (equivalent, there, target)):
            if name is not None and found is None:
                full = _full(name, side)
                sets = tuple(set_prefixes(side.names))
                findings[icon].append(
                    UnknownIcon(icon=icon, equivalent=equivalent, name=full, nearest=_nearest(full, side), sets=sets)
                )
        if place is not None and (equivalent is None or there is not None):
            asked[place] = (icon, equivalent, there)
    if numbers is not None and asked:
        for match in match_pictures(source, target, numbers, n=50, places=sorted(asked)):
            icon, equivalent, there = asked[match.place]
            probability = None if there is None else _probability_of(target.things[there], match, target)
            best = match.nearest[0]
            assert best.probability is not None
            if best.probability >= _LIKELY and (probability is None or probability <= _WRONG):
                findings[icon].append(
                    DoubtfulEntry(
                        icon=icon,
                        equivalent=equivalent,
                        probability=probability,
                        likelier=best.name,
                        likelier_probability=best.probability,
                    )
                )
    return [finding for found in findings.values() for finding in found]


def _probability_of(thing: str, match: PictureMatch, target: PictureSet) -> float:
    """Return the probability of the first candidate that shows a thing, or 0 if no candidate does."""
    found = next((one.probability for one in match.nearest if target.things[one.place] == thing), 0.0)
    assert found is not None
    return found


def _full(name: str, side: PictureSet) -> str:
    return name if ":" in name else f"{side.names[0].partition(':')[0]}:{name}"


def _place(name: str, side: PictureSet, aliases: Mapping[str, str]) -> int | None:
    full = _full(name, side)
    return side.places.get(aliases.get(full, full))


def aliases_of(names: Sequence[str], further: Iterable[Sequence[str]]) -> dict[str, str]:
    """The full names of aliases, and of their icons."""
    return {
        f"{name.partition(':')[0]}:{alias}": name for name, more in zip(names, further, strict=True) for alias in more
    }
