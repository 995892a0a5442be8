"""Health Icons: medical pictograms, a small domain to fine-tune on."""

from __future__ import annotations

import json
import re

from concepts import write_caption
from packages import Sources
from raster import encode_webp, render_icon, to_grey_levels
from shards import Corpus, Sample, drop_identical, drop_near_train, pick_split

SHARES = {"val": 0.08, "test": 0.15}
VARIANTS = ("filled", "outline", "filled-24px", "outline-24px")
NEAR = 0.5
ROOT = "package/public/icons/"

ABOUT = (
    "Medical pictograms of the Health Icons project, each concept filled and in outline, some also in a second "
    "drawing for small sizes. The caption is the title and the project's tags that add a word."
)
SPLIT_RULE = (
    "By concept: all drawings of concepts that share a title or an id lie in one split, drawn by hash. Pixel-identical "
    "drawings are kept once."
)
FAULTS = [
    "Related concepts (blood groups, test results, 'heart' with a small added mark) differ in a detail and may lie in "
    "different splits: this is a hard fine-grained test.",
    "Filled and outline drawings have the same caption; nothing in it tells them apart.",
    "Grey is rounded to 16 levels.",
    "Tags are in alphabetical order, and some titles have spelling mistakes of the source.",
]


def caption_of(entry: dict[str, list[str]], title: str) -> str:
    """Title and own tags; `dhis2:` tags are another system's ids."""
    tags = [tag for tag in (re.sub(r"\s*dhis2:\S*", "", tag).strip() for tag in entry["tags"]) if tag]
    return write_caption(re.sub(r"\s+", " ", title.replace("_", " ")).strip(), tags, extra=6)


def _groups(entries: list[dict[str, str]]) -> dict[str, str]:
    """Return {path: group}; entries with the same title or id are one group."""
    first: dict[str, str] = {}
    groups: dict[str, str] = {}
    for entry in entries:
        names = "title:" + entry["title"].strip().lower(), "id:" + entry["id"].lower()
        known = [first[name] for name in names if name in first]
        group = known[0] if known else entry["path"]
        for other in known[1:]:
            groups = {path: group if g == other else g for path, g in groups.items()}
            first = {name: group if g == other else g for name, g in first.items()}
        groups[entry["path"]] = group
        first.update(dict.fromkeys(names, group))
    return groups


def build(sources: Sources) -> Corpus:
    """Return the corpus."""
    files = sources.read("healthicons", lambda name: name.startswith(ROOT) and name.endswith((".svg", ".json")))
    entries = json.loads(files[ROOT + "meta-data.json"])
    groups = _groups(entries)
    samples = []
    for entry in entries:
        for variant in VARIANTS:
            svg = files.get(f"{ROOT}svg/{variant}/{entry['path']}.svg")
            image = render_icon(svg.decode()) if svg else None
            if image is not None:
                key = re.sub(r"[^a-z0-9_-]", "_", f"{variant}-{entry['path'].replace('/', '-')}".lower())
                webp = encode_webp(to_grey_levels(image), None)
                split = pick_split("health", groups[entry["path"]], SHARES)
                samples.append(Sample(key, webp, caption_of(entry, entry["title"]), split))
    samples = drop_near_train(drop_identical(samples), NEAR)
    return Corpus("health", "Health Icons", ABOUT, SPLIT_RULE, FAULTS, ["healthicons"], samples)
