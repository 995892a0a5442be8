"""Maps from the icons of one set to those of another, for manual decisions and for checks of tables.

The format is JSON: `{"format": 1, "icons": {"lucide:x": "tabler:x", "lucide:y": null}}`, where null means that an icon
has no equivalent. Flat objects and CSV files with two columns are also accepted.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from grr_coca.common.errors import UserError, escape_control_chars
from grr_coca.common.files import read_file_bytes
from grr_coca.data.tokenizer import decode_text
from grr_coca_icons.codemod.packages import package_for
from grr_coca_icons.match.candidates import Candidate, PictureMatch, PictureSet, match_pictures
from grr_coca_icons.match.icon_lookup import IconLookup
from grr_coca_icons.match.match_numbers import MatchWeights

FORMAT = 1
IconMap = dict[str, str | None]
"""Full names of icons, each with the full name of its equivalent, or None if the icon has no equivalent."""

_WRONG = 0.1
"""Maximum probability at which the equivalent in an entry is doubtful."""
_LIKELY = 0.5
"""Minimum probability at which another icon makes an entry doubtful."""


def read_map(path: Path) -> IconMap:
    """Read a map from a CSV or TSV file with two columns, or from a JSON file.

    Raises:
        UserError: If the file cannot be read, is not a map, or has an unsupported format version.
    """
    text = decode_text(read_file_bytes(path), str(path))
    if path.suffix.lower() in (".csv", ".tsv"):
        return _read_table(text, path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); pass a map in JSON or CSV") from error
    if isinstance(content, dict) and isinstance(content.get("icons"), dict) and "format" in content:
        if content["format"] != FORMAT:
            raise UserError(
                f"{path}: unsupported map format {content['format']!r}; this version supports {FORMAT}; update grr-coca"
            )
        content = content["icons"]
    if not isinstance(content, dict) or not content:
        raise UserError(f'{path}: not a map of icons; expected {{"format": 1, "icons": {{"lucide:x": "tabler:x"}}}}')
    for name, equivalent in content.items():
        if equivalent is not None and not isinstance(equivalent, str):
            raise UserError(f"{path}: '{escape_control_chars(name)}': expected the name of an icon, or null for none")
    return {
        escape_control_chars(name): equivalent and escape_control_chars(equivalent)
        for name, equivalent in content.items()
    }


def _read_table(text: str, path: Path) -> IconMap:
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except csv.Error as error:
        raise UserError(f"{path}: not a table ({error}); pass a table with two columns") from error
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if not rows or any(len(row) < 2 for row in rows):
        raise UserError(f"{path}: expected two columns, an icon and its equivalent")
    if {cell.lower() for cell in rows[0][:2]} & {"from", "source", "icon", "to", "target"}:
        rows = rows[1:]
    return {escape_control_chars(row[0]): escape_control_chars(row[1]) or None for row in rows}


def format_map(icons: Mapping[str, str | None]) -> str:
    """Convert a map to JSON text with the module's format, sorted by name."""
    return json.dumps({"format": FORMAT, "icons": dict(sorted(icons.items()))}, indent=1, ensure_ascii=False) + "\n"


_SHADCN = {"lucide": "lucide", "tabler": "tabler", "ph": "phosphor", "ri": "remixicon", "radix-icons": "radix"}
"""Prefixes of the sets that `shadcn migrate icons` supports, each with shadcn's name for the set."""
SHADCN_PATH = ("icons", "index.json")
"""Path of shadcn's map below its `REGISTRY_URL`."""


def format_shadcn_map(icons: Mapping[str, str]) -> str:
    """Convert a map to JSON text for `shadcn migrate icons`, which names the React components of each supported
    library.

    Args:
        icons: Icons and their equivalents. Pairs of sets that shadcn does not support are omitted. shadcn does not
            change any other icons in the code.

    Raises:
        UserError: If no pair is from two sets that shadcn supports.
    """
    entries: dict[str, dict[str, str]] = {}
    for pair in icons.items():
        names = [name.partition(":")[::2] for name in pair]
        components = {_SHADCN[prefix]: _component_name(prefix, name) for prefix, name in names if prefix in _SHADCN}
        if len(components) == 2:
            entries.setdefault(next(iter(components.values())), components)
    if icons and not entries:
        raise UserError(f"shadcn supports only icons of {', '.join(_SHADCN)}; match one of these sets with another")
    return json.dumps(entries, indent=1, sort_keys=True) + "\n"


def _component_name(prefix: str, name: str) -> str:
    package = package_for(prefix, "react")
    assert package is not None
    return package.component(prefix, name).name


def decided_matches(decided: IconMap, source: IconLookup, target: IconLookup, where: str) -> dict[int, PictureMatch]:
    """Return the matches that a map determines, by source row. Entries for icons outside the source are ignored.

    Args:
        decided: The map.
        source: Icons that the map replaces.
        target: Icons among which the equivalents are looked up.
        where: File of the map, for messages.

    Raises:
        UserError: If the map belongs to other sets, or has an unknown equivalent.
    """
    found: dict[int, PictureMatch] = {}
    for name, equivalent in decided.items():
        row = source.find(name)
        if row is None:
            continue
        full = source.pictures.names[row]
        if equivalent is None:
            found[row] = PictureMatch(name=full, row=row, candidates=(), is_decided=True)
            continue
        target_row = target.find(equivalent)
        if target_row is None:
            near = target.nearest(equivalent)
            hint = f"; did you mean '{near[0]}'?" if near else f" in {', '.join(target.prefixes[:6])}"
            raise UserError(f"{where}: '{name}': unknown icon '{equivalent}'{hint}")
        best = target.pictures.names[target_row]
        candidate = Candidate(name=best, row=target_row, probability=1.0, score=0.0, same_name=False)
        found[row] = PictureMatch(name=full, row=row, candidates=(candidate,), is_decided=True)
    if decided and not found:
        first = next(iter(decided.items()))
        raise UserError(
            f"{where}: this map is for other icons: none of its {len(decided):,} icons is in "
            f"{', '.join(source.prefixes[:6])} "
            f"(the first entry is {first[0]} → {first[1] or 'none'}); pass a map for these sets"
        )
    return found


# --- Checking a table


@dataclass(frozen=True, kw_only=True)
class UnknownIcon:
    """Table entry with an unknown icon.

    Attributes:
        icon: Icon of the entry, as written.
        equivalent: Equivalent in the entry, as written, or None if it is null.
        name: Full name of the unknown icon.
        nearest: Most similar name in the sets, or None if no name is similar.
        sets: Prefixes of the sets in which the icon was looked up, at most six.
    """

    icon: str
    equivalent: str | None
    name: str
    nearest: str | None
    sets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DoubtfulEntry:
    """Table entry for which another equivalent is more likely.

    Attributes:
        icon: Icon of the entry, as written.
        equivalent: Equivalent in the entry, as written, or None if it is null.
        probability: Probability of this equivalent, or None if the entry has no equivalent.
        likelier: Name of the most likely icon.
        likelier_probability: Probability of that icon.
    """

    icon: str
    equivalent: str | None
    probability: float | None
    likelier: str
    likelier_probability: float


def check_map(
    table: IconMap, source: IconLookup, target: IconLookup, numbers: MatchWeights | None
) -> list[UnknownIcon | DoubtfulEntry]:
    """Find the entries of a table that look wrong, in the order of the table.

    Such entries have unknown names, probably wrong equivalents, or no equivalent although one exists. If the equivalent
    is unlikely and another icon is likely, the entry is doubtful. A name without a prefix is looked up in all sets, in
    order.

    Args:
        table: Table to check.
        source: Lookup of the table's icons.
        target: Lookup of their equivalents.
        numbers: Parameters of the model. If None, only names are checked.
    """
    findings: dict[str, list[UnknownIcon | DoubtfulEntry]] = {icon: [] for icon in table}
    known: dict[int, list[tuple[str, str | None, int | None]]] = defaultdict(list)
    for icon, equivalent in table.items():
        row = source.find(icon)
        target_row = None if equivalent is None else target.find(equivalent)
        for name, found, side in ((icon, row, source), (equivalent, target_row, target)):
            if name is not None and found is None:
                full = name if ":" in name else f"{side.prefixes[0]}:{name}"
                near = side.nearest(name)
                unknown = UnknownIcon(
                    icon=icon,
                    equivalent=equivalent,
                    name=full,
                    nearest=near[0] if near else None,
                    sets=tuple(side.prefixes[:6]),
                )
                findings[icon].append(unknown)
        if row is not None and (equivalent is None or target_row is not None):
            known[row].append((icon, equivalent, target_row))
    if numbers is not None and known:
        for match in match_pictures(source.pictures, target.pictures, numbers, n=50, rows=sorted(known)):
            shown, best = target.pictures, match.nearest[0]
            assert best.probability is not None
            if best.probability < _LIKELY:
                continue
            for icon, equivalent, target_row in known[match.row]:
                concept = None if target_row is None else shown.concepts[target_row]
                probability = None if concept is None else _concept_probability(concept, match, shown)
                if probability is None or probability <= _WRONG:
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


def _concept_probability(concept: str, match: PictureMatch, target: PictureSet) -> float:
    """Return the probability of the first candidate that shows a concept, or 0 if no candidate does."""
    found = next((one.probability for one in match.nearest if target.concepts[one.row] == concept), 0.0)
    assert found is not None
    return found
