"""The two cards of a corpus: card.md for people, card.json for programs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from packages import PACKAGES
from shards import Corpus, unit_hash


def _sources(corpus: Corpus) -> list[dict[str, str]]:
    rows = []
    for key in corpus.sources:
        package = PACKAGES[key]
        rows.append(
            {
                "package": package.name,
                "version": package.version,
                "registry": package.kind,
                "archive": package.archive,
                "sha256": package.sha256,
                "licence": package.licence,
            }
        )
    return rows


def write_json(corpus: Corpus, splits: dict[str, dict[str, object]], folder: Path) -> None:
    """Write the machine's card: counts and hashes that a test can hold against the shards."""
    card: dict[str, object] = {
        "name": corpus.name,
        "description": corpus.about,
        "sources": _sources(corpus),
        "licenses": sorted({PACKAGES[key].licence for key in corpus.sources}),
        "splits": splits,
        **corpus.extra,
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _counts(corpus: Corpus, splits: dict[str, dict[str, object]]) -> list[str]:
    """Counts per split, with a column per style where the corpus has styles."""
    tally = Counter((s.split, s.style) for s in corpus.samples)
    styles = sorted({s.style for s in corpus.samples})
    if styles == [""]:
        return _table(["split", "pairs"], [[split, str(entry["count"])] for split, entry in splits.items()])
    rows = [
        [split, *(str(tally[split, style]) for style in styles), str(entry["count"])] for split, entry in splits.items()
    ]
    return _table(["split", *styles, "all"], rows)


def write_markdown(corpus: Corpus, splits: dict[str, dict[str, object]], folder: Path) -> None:
    """Write the reader's card."""
    words = sum(len(s.caption.split()) for s in corpus.samples) / len(corpus.samples)
    mean_bytes = sum(len(s.webp) for s in corpus.samples) / len(corpus.samples)
    shown = sorted(corpus.samples, key=lambda s: unit_hash("card", s.key))[:10]
    sources = [
        [f"{row['registry']} `{row['package']}`", row["version"], row["licence"], f"`{row['sha256']}`"]
        for row in _sources(corpus)
    ]
    lines = [f"# {corpus.title}", "", corpus.about, ""]
    lines += [f"{len(corpus.samples):,} pairs of a 64 × 64 RGB WebP over white ({mean_bytes:.0f} bytes on average)"]
    lines += [f"and a caption ({words:.1f} words on average), in tar shards of `KEY.webp` and `KEY.txt`.", ""]
    lines += [
        "## Sources",
        "",
        *_table(["package", "version", "licence", "sha256 of the archive"], sources),
        "",
    ]
    lines += ["The full notices are in `NOTICE` at the root of the repository.", ""]
    lines += ["## Splits", "", *_counts(corpus, splits), "", corpus.split_rule, ""]
    lines += ["## Ten captions", "", *(f"- {s.caption}" for s in shown), ""]
    lines += ["## Known faults", "", *(f"- {fault}" for fault in corpus.faults), ""]
    lines += ["## Rebuild", "", "```", "pip install -r scripts/build_datasets/requirements.txt"]
    lines += [
        "python scripts/build_datasets --out datasets",
        "python scripts/build_datasets --out datasets --check",
    ]
    lines += ["```", ""]
    (folder / "card.md").write_text("\n".join(lines), encoding="utf-8")
