"""Further words for icons: tags and aliases that the sets' own packages carry."""

import json
import re
from collections.abc import Callable, Iterable, Mapping

from grr_coca.data.corpus.icons.captions import further_caption
from grr_coca.data.corpus.icons.packages import Archives

Words = dict[str, list[str]]
"""Further words by the icon's name without style."""


def read_tags(archives: Archives) -> Mapping[str, Words]:
    """Further words of the icons of some sets, by the set's prefix in Iconify."""
    return {prefix: read(archives.text(key, file)) for prefix, (key, file, read) in _TABLES.items()}


def _tabler(content: str) -> Words:
    return {name: _clean(entry["tags"]) for name, entry in json.loads(content).items()}


def _lucide(content: str) -> Words:
    return {name: _clean(tags) for name, tags in json.loads(content).items()}


def _mdi(content: str) -> Words:
    """Their aliases: what the package calls tags are categories."""
    return {entry["name"]: _clean(entry["aliases"]) for entry in json.loads(content)}


def _phosphor(content: str) -> Words:
    """From the package's JavaScript: it has no table in another form."""
    entries = re.findall(r'\bname: "([a-z0-9-]+)".*?\btags: (\[[^\]]*\])', content, flags=re.DOTALL)
    return {name: _clean(tag for tag in json.loads(tags) if not tag.startswith("*")) for name, tags in entries}


def _clean(tags: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(caption for tag in tags if (caption := further_caption(str(tag)))))


_TABLES: Mapping[str, tuple[str, str, Callable[[str], Words]]] = {
    "tabler": ("tabler", "icons.json", _tabler),
    "lucide": ("lucide", "tags.json", _lucide),
    "mdi": ("mdi", "meta.json", _mdi),
    "ph": ("phosphor", "dist/index.mjs", _phosphor),
}
