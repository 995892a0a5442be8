"""The two cards of the corpus: `card.json` for programs, `card.md` for people, with every set's authors and licence."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from grr_coca.data.corpus.icons.packages import NpmPackage
from grr_coca.data.corpus.icons.pairs import Selection
from grr_coca.data.corpus.icons.sets import IconSet, why_left_out

ABOUT = (
    "Icons of open design sets, 64 × 64 pixels, black on white or in their colours, with their names in words: no "
    "words of drawing style, no numbers that tell drawings of one thing apart. Tags and aliases, where a set's own "
    "package has them, are further captions of the training pairs, and of all training pairs of the same name."
)

SPLIT_RULE = (
    "By design family: sets that share near-identical pictures, or an author. `val` and each `test_family_…` are whole "
    "families that training never sees; `test` are things whose pictures, in all variants of their family, are kept "
    "out of training. Evaluation splits hold at most 2,000 pictures, each with another caption. Identical pictures are "
    "kept once, in training where training has one; no training picture is a test picture of the other corpora."
)


def write_cards(
    folder: Path,
    packages: Iterable[NpmPackage],
    collections: Mapping[str, Mapping],
    sets: Mapping[str, IconSet],
    selection: Selection,
    splits: dict[str, dict[str, object]],
) -> None:
    """Write both cards.

    Args:
        folder: the corpus.
        packages: what it was made of.
        collections: all sets of the package, those that are left out too.
        sets: the sets of the corpus.
        selection: its pairs.
        splits: count and checksums of each split's shards.
    """
    used = Counter(pair.prefix for pair in selection.pairs)
    split_of = {pair.prefix: pair.split for pair in selection.pairs if pair.split != "test"}
    rows = {
        prefix: {
            "title": about.title,
            "author": about.author,
            "url": about.url,
            "licence": about.licence,
            "pairs": used[prefix],
            "split": split_of.get(prefix, ""),
            "left_out": dict(sorted(selection.left_out[prefix].items())),
        }
        for prefix, about in sets.items()
    }
    reasons = Counter(reason for prefix, about in collections.items() if (reason := why_left_out(prefix, about)))
    card = {
        "name": "icons",
        "description": ABOUT,
        "sources": [{"package": p.name, "version": p.version, "sha256": p.sha256} for p in packages],
        "splits": splits,
        "sets_left_out": dict(sorted(reasons.items())),
        "sets": rows,
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "card.md").write_text(_page(card, rows), encoding="utf-8")


def _page(card: dict, rows: Mapping[str, dict]) -> str:
    left_out: Counter[str] = Counter()
    for row in rows.values():
        left_out.update(row["left_out"])
    lines = ["# Icons", "", ABOUT, "", "## Splits", "", SPLIT_RULE, "", "| split | pairs |", "|---|---|"]
    lines += [f"| {name} | {split['count']:,} |" for name, split in card["splits"].items()]
    lines += ["", "## Left out", "", "| icons | because |", "|---|---|"]
    lines += [f"| {count:,} | {reason} |" for reason, count in left_out.most_common()]
    whole = ", ".join(f"{number} ({reason})" for reason, number in card["sets_left_out"].items())
    lines += ["", f"Whole sets: {whole}.", ""]
    lines += ["## Sources", "", "| npm package | version | sha256 of the archive |", "|---|---|---|"]
    lines += [f"| `{s['package']}` | {s['version']} | `{s['sha256']}` |" for s in card["sources"]]
    lines += ["", "## Sets, their authors and licences", ""]
    lines += ["| set | pairs | split | author | licence |", "|---|---|---|---|---|"]
    lines += [f"| {row['title']} (`{prefix}`) | {_about_set(row)} |" for prefix, row in rows.items()]
    return "\n".join([*lines, ""])


def _about_set(row: Mapping) -> str:
    author = f"[{row['author']}]({row['url']})"
    return f"{row['pairs']:,} | {row['split']} | {author} | {row['licence']}"
