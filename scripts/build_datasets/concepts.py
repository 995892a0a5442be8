"""Emoji concepts: their captions, which icon draws which, and which concepts are really one.

The sets name their icons after different editions of Unicode and of CLDR. The three sets that carry code points
teach the others their names; old Unicode names and the shortcode lists fill the rest.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass

from packages import Sources

WITH_CODE_POINTS = ("noto", "twemoji", "fluent-emoji-flat")
SHORTCODES = ("cldr", "emojibase", "emojibase-legacy", "iamcal", "github", "joypixels")
COMPONENT_GROUP = 2  # skin-tone swatches and loose hair: parts of emoji, not emoji
# Names that the indexes resolve to another concept than the one that is drawn: fxemoji's 'bow' is a ribbon, and
# streamline's 'turkey' a country. Found by looking at every pair beside another set's drawing.
MISNAMED: dict[str, set[str]] = {
    "fxemoji": {"wave", "up", "down", "bow", "pout", "pouting"} | {"construction", "keyboard", "window", "tramcar"},
    "streamline-emojis": {"turkey", "right-anger-bubble", "maple-leaf", "champagne-glass-1"},
}
# Territories that fly another country's flag: one drawing with two captions teaches neither.
_SAME_FLAG = """
1F1E8-1F1F5 1F1F2-1F1EB 1F1E7-1F1FB 1F1F8-1F1EF 1F1ED-1F1F2 1F1FA-1F1F2 1F1EA-1F1E6 1F1E9-1F1EC
"""
SAME_FLAG = frozenset(_SAME_FLAG.split())


@dataclass(frozen=True)
class Concept:
    """One emojibase entry."""

    hexcode: str
    caption: str
    label: str


@dataclass(frozen=True)
class IconSet:
    """One Iconify set: drawings by name, aliases, and code points where the set gives them."""

    icons: dict[str, dict[str, object]]
    aliases: dict[str, str]
    code_points: dict[str, str]
    size: tuple[int, int]

    def svg(self, name: str) -> str:
        """Return a full document for an icon or an alias."""
        icon = self.icons[self.aliases.get(name, name)]
        width, height = icon.get("width", self.size[0]), icon.get("height", self.size[1])
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">'
        return f"{head}{icon['body']}</svg>"


def read_icon_set(sources: Sources, style: str) -> IconSet:
    """Read icons.json and chars.json of a set."""
    icons = json.loads(sources.read_one(style, "/icons.json"))
    chars = json.loads(sources.read_one(style, "/chars.json"))
    aliases = {name: alias["parent"] for name, alias in icons.get("aliases", {}).items()}
    size = (icons.get("width", 16), icons.get("height", 16))
    return IconSet(icons["icons"], aliases, chars, size)


def write_caption(label: str, tags: list[str], extra: int = 3) -> str:
    """Join the label with the first few tags that say something which the label does not."""
    known = set(re.findall(r"[^\W_]+", label.lower()))
    kept: list[str] = []
    for tag in tags:
        words = set(re.findall(r"[^\W_]+", tag.lower()))
        if words - known:
            kept.append(tag.lower())
            known |= words
    return ", ".join([label.lower(), *kept[:extra]])


def read_concepts(sources: Sources) -> dict[str, Concept]:
    """Return concepts by hexcode; no two may share a caption, since a caption is what the split holds out."""
    entries = json.loads(sources.read_one("emojibase", "/en/data.json"))
    concepts = {}
    for entry in entries:
        if entry.get("group") != COMPONENT_GROUP and entry["hexcode"] not in SAME_FLAG:
            concepts[entry["hexcode"]] = Concept(entry["hexcode"], entry["label"].lower(), entry["label"])
    captions = [c.caption for c in concepts.values()]
    assert len(set(captions)) == len(captions), "two concepts share a caption"
    return concepts


def squash(name: str) -> str:
    """Reduce a name to its letters and digits, so that spelling habits do not matter."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]", "", plain.replace("&", "and").replace("st.", "st"))


def bare(hexcode: str) -> str:
    """Drop variation selectors: the sets disagree on where to write them."""
    return "-".join(part for part in hexcode.upper().split("-") if part not in ("FE0E", "FE0F"))


def _by_code_point(icon_set: IconSet, concepts: dict[str, Concept]) -> dict[str, str]:
    """Return {hexcode: icon name} for a set with code points."""
    canonical = {bare(hexcode): hexcode for hexcode in concepts}
    found: dict[str, str] = {}
    for code, name in icon_set.code_points.items():
        hexcode = canonical.get(bare(code))
        if hexcode and (name in icon_set.icons or name in icon_set.aliases):
            found.setdefault(hexcode, name)
    return found


def name_index(sources: Sources, concepts: dict[str, Concept], sets: dict[str, IconSet]) -> dict[str, str]:
    """Return {squashed name: hexcode}; the first source that claims a name keeps it."""
    index: dict[str, str] = {}

    def claim(name: str, hexcode: str) -> None:
        if squash(name) and hexcode in concepts:
            index.setdefault(squash(name), hexcode)

    for concept in concepts.values():
        claim(concept.label, concept.hexcode)
    for style in WITH_CODE_POINTS:
        hexcode_of = {name: code for code, name in _by_code_point(sets[style], concepts).items()}
        for name, hexcode in hexcode_of.items():
            claim(name, hexcode)
        for alias, parent in sets[style].aliases.items():
            claim(alias, hexcode_of.get(parent, ""))
    for preset in SHORTCODES:
        for hexcode, codes in json.loads(sources.read_one("emojibase", f"/en/shortcodes/{preset}.json")).items():
            for code in [codes] if isinstance(codes, str) else codes:
                claim(code, hexcode)
    for hexcode in concepts:
        if "-" not in bare(hexcode):
            claim(unicodedata.name(chr(int(bare(hexcode), 16)), ""), hexcode)
    return index


def _by_name(style: str, icon_set: IconSet, index: dict[str, str]) -> dict[str, str]:
    """Return {hexcode: icon name} for a set without code points; '-2' and above are skin tones or repeats."""
    found: dict[str, str] = {}
    for name in [*icon_set.icons, *icon_set.aliases]:
        if "skin-tone" in name or re.search(r"tone\d", name) or name in MISNAMED.get(style, set()):
            continue
        for spelling in (name, re.sub(r"^flag-for-(flag-)?", "flag-", name), name.removesuffix("-1")):
            if squash(spelling) in index:
                found.setdefault(index[squash(spelling)], name)
                break
    return found


def match_icons(sources: Sources, concepts: dict[str, Concept], sets: dict[str, IconSet]) -> dict[str, dict[str, str]]:
    """Return {style: {hexcode: icon name}}."""
    index = name_index(sources, concepts, sets)
    return {
        style: _by_code_point(icon_set, concepts) if icon_set.code_points else _by_name(style, icon_set, index)
        for style, icon_set in sets.items()
    }


def _without_person(hexcode: str) -> str:
    """Unify man, woman and person in a code sequence, and drop signs of gender, hair and direction."""
    parts = bare(hexcode).split("-")
    if len(parts) > 1:
        parts = [p for p in parts if p not in ("200D", "2640", "2642", "27A1", "1F9B0", "1F9B1", "1F9B2", "1F9B3")]
    return "hex:" + "-".join("1F9D1" if p in ("1F468", "1F469") else p for p in parts)


def _without_gender(label: str) -> str:
    """Drop the words of gender from a label; '' where nothing is left."""
    head = label.lower() if label.startswith(("flag:", "keycap:")) else label.lower().split(":")[0]
    words = re.findall(r"[^\W_]+", head.replace("facing right", "").replace("older", "old"))
    gendered = {"man", "woman", "person", "men", "women", "people", "and", "mr", "mrs", "mx", "s"}
    rest = [w for w in words if w not in gendered]
    return "label:" + " ".join(rest) if rest else ""


def concept_groups(concepts: dict[str, Concept]) -> dict[str, str]:
    """Return {hexcode: group}: 'woman zombie' and 'zombie' look too alike to be on both sides of a split."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for concept in concepts.values():
        for name in filter(None, (_without_person(concept.hexcode), _without_gender(concept.label))):
            parent[root(name)] = root(concept.hexcode)
    members: dict[str, list[str]] = defaultdict(list)
    for hexcode in concepts:
        members[root(hexcode)].append(hexcode)
    return {hexcode: min(group) for group in members.values() for hexcode in group}
