"""A site that searches open icon sets by meaning: `python scripts/build_datasets/icon_site.py --out SITE`.

The icons are those of the corpus `icons`: permissive licences, no emoji, no logos. Of the drawings that a set has of
one thing, the site shows the first. Their SVG can be copied with the name, the set, the author and the licence. An
icon is embedded as the model saw icons in training. Embeddings are kept in the user's cache, so that a stopped build
goes on.

Shapes: N icons, E embedding width.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from icon_captions import brand_captions, further_caption, is_logo
from icon_drawings import aliases_of, declared_styles, draw_icon, icon_box, icon_svg, read_logo_names
from icon_sources import Archives, IconSet, Words, kept_sets, read_tags
from PIL import Image

from grr_coca.cli import exit_code
from grr_coca.common.errors import UserError
from grr_coca.common.files import require_folder_name, user_cache, write_bytes_atomic
from grr_coca.model.checkpoint_files import fingerprint
from grr_coca_icons.icon_names import caption_of, style_words
from grr_coca_icons.match.match_numbers import match_numbers
from grr_coca_icons.match.other_sets import CrossSetMatcher, Equivalent
from grr_coca_icons.match.picture_set import make_picture_set
from grr_coca_icons.sources.icon_set import drawn_style
from grr_coca_search.duplicates import group_duplicates
from grr_coca_search.entry import Entry, Stamp, name_id
from grr_coca_search.index import IndexModel
from grr_coca_search.picture_facts import compute_pixel_signature, perceptual_hash
from grr_coca_search.relevance import curve_of
from grr_coca_search.store import facets_of
from grr_coca_serve.site import Library, find_runtime, graphs_of, write_site

KNOWN = """
tabler lucide ph mdi material-symbols bi heroicons carbon ri iconoir octicon radix-icons fa7-solid ion solar
flat-color-icons fluent-color game-icons meteocons
"""
"""Sets of the small choice, which most people know."""

MODEL = "icons"
BATCH = 64
ABOUT = "{count:,} free icons of {sets} sets. Find them by what they show, not by what they are called."
SITE_OF_SETS = "https://icon-sets.iconify.design"


@dataclass(frozen=True)
class Icon:
    """An icon: its name in its set, its further names, its caption, further words for it, its style, its box, and its
    SVG without the outer tag."""

    name: str
    aliases: tuple[str, ...]
    caption: str
    words: tuple[str, ...]
    style: str
    box: tuple[float, float, float, float]
    body: str
    svg: str


def icons_of(about: Mapping[str, Any], brands: frozenset[str], tags: Words) -> list[Icon]:
    """Return the icons of a set, the first of each caption, without logos.

    Args:
        about: the set's file in Iconify.
        brands: captions that mean a logo.
        tags: further words, by name.
    """
    names = [name for name, icon in about["icons"].items() if not icon.get("hidden")]
    styles = style_words(names, declared_styles(about))
    own = {caption_of(name, styles): further for name, further in tags.items()}
    aliases = aliases_of(about)
    found: dict[str, Icon] = {}
    for name in names:
        caption = caption_of(name, styles)
        if caption in found or is_logo(name, caption, brands):
            continue
        icon = about["icons"][name]
        own_aliases = tuple(aliases.get(name, []))
        further = (further_caption(alias) for alias in own_aliases)
        words = tuple(dict.fromkeys(word for word in (*further, *own.get(caption, ())) if word and word != caption))
        svg = icon_svg(icon, about)
        style = drawn_style(name, svg, styles)
        found[caption] = Icon(name, own_aliases, caption, words, style, icon_box(icon, about), icon["body"], svg)
    return list(found.values())


def embed(icons: Sequence[Icon], model: Any, kept: Path) -> Iterator[tuple[Icon, np.ndarray, int, bytes]]:
    """Each icon that shows something, with its embedding, its perceptual hash and its pixel signature.

    Args:
        icons: of one set.
        model: as `grr_coca.load` returns it.
        kept: file in which all of this is kept, and from which it is read if it is there.
    """
    if not kept.exists():
        drawn = [(number, image) for number, icon in enumerate(icons) if (image := _drawn(icon)) is not None]
        images = [image for _, image in drawn]
        file = io.BytesIO()
        np.savez(
            file,
            places=np.array([number for number, _ in drawn], np.int64),
            vectors=np.asarray(model.embed_images(images, batch_size=BATCH), np.float16),
            hashes=np.array([perceptual_hash(image) for image in images], np.int64),
            looks=np.array([list(compute_pixel_signature(image)) for image in images], np.uint8),
        )
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(kept, file.getvalue())
    with np.load(kept, allow_pickle=False) as arrays:
        columns = (arrays[name] for name in ("places", "vectors", "hashes", "looks"))
        for number, vector, phash, look in zip(*columns, strict=True):
            yield icons[number], vector, int(phash), look.tobytes()


def _drawn(icon: Icon) -> Image.Image | None:
    try:
        drawing = draw_icon(icon.svg)
    except ValueError:
        return None
    return None if drawing is None else Image.open(io.BytesIO(drawing.webp)).convert("RGB")


def build(
    out: Path,
    prefixes: Sequence[str],
    runtime: Path | None,
    on_set: Callable[[str, int], None],
    archives: Archives | None = None,
) -> int:
    """Build the site. Returns the number of icons.

    Args:
        out: new folder, or that of an earlier site, which is replaced.
        prefixes: the sets to show; empty: all of the corpus.
        runtime: archive of ONNX Runtime Web; None: npm fetches it once.
        on_set: called after each set with its prefix and the number of icons so far. Then icons are looked for in the
            other sets, and it is called with the number of sets that are done.
        archives: the packages; None: in the user's cache.

    Raises:
        UserError: a package cannot be had, there is no such set, or `out` holds something else.
    """
    import grr_coca
    from grr_coca.infer.load import locate_checkpoint

    require_folder_name(out)
    if out.exists() and not (out / "site.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: contains other files; pass a new folder")
    files = find_runtime(runtime)
    archives = archives or Archives(user_cache() / "packages")
    archives.fetch(lambda _: None)
    sets = kept_sets(archives.json("iconify", "collections.json"))
    unknown = set(prefixes) - set(sets)
    if unknown:
        raise UserError(f"--sets: no such set, or not one with a permissive licence: {', '.join(sorted(unknown))}")
    wanted = {prefix: sets[prefix] for prefix in prefixes or sets}
    checkpoint = locate_checkpoint(MODEL)
    model_id = fingerprint(checkpoint)
    brands, tags = brand_captions(read_logo_names(archives)), read_tags(archives)
    model = grr_coca.load(MODEL)
    rows: list[tuple[Entry, np.ndarray, Icon]] = []
    paths = {f"json/{prefix}.json" for prefix in wanted}
    for path, content in archives.files("iconify", paths.__contains__):
        prefix = Path(path).stem
        icons = icons_of(json.loads(content), brands, tags.get(prefix, {}))
        digest = hashlib.sha256("\n".join((model_id, *(icon.svg for icon in icons))).encode()).hexdigest()[:16]
        for icon, vector, phash, look in embed(icons, model, user_cache() / "icon-site" / f"{prefix}-{digest}.v2.npz"):
            rows.append((_entry(wanted[prefix], icon, phash, look), vector, icon))
        on_set(prefix, len(rows))
    rows.sort(key=lambda row: name_id(row[0].name))  # a mixture of all sets
    entries = [entry for entry, _, _ in rows]
    order = sorted(range(len(rows)), key=lambda row: (entries[row].caption, entries[row].name))
    vectors = np.array([vector for _, vector, _ in rows])
    library = Library(
        entries=entries,
        vectors=vectors,
        groups=group_duplicates(entries, vectors),
        others=in_other_sets([icon for _, _, icon in rows], entries, vectors, on_set),
        facets=facets_of(entries, ("set", "style", "licence", "colours")),
        drawings=[(icon.box, icon.body) for _, _, icon in rows],
        drawn_order=order,
        curve=curve_of(checkpoint, model.config),
        words=[" ".join((entry.name, *icon.words)) for entry, _, icon in rows],
    )
    counts = Counter(str(entry.fields["set"]) for entry in entries)
    about = {
        "about": ABOUT.format(count=len(entries), sets=len(counts)),
        "placeholder": "something to drink",
    }
    with graphs_of(checkpoint) as graphs:
        write_site(
            graphs,
            out,
            files,
            library,
            title="Icons",
            about=about,
            model=MODEL,
            more={"NOTICE.txt": _notice(wanted.values(), counts).encode()},
        )
    return len(entries)


def in_other_sets(
    icons: Sequence[Icon], entries: Sequence[Entry], vectors: np.ndarray, on_set: Callable[[str, int], None]
) -> list[list[Equivalent]] | None:
    """For each icon its equivalents in the other sets, or what was found before; None if the model has no numbers."""
    model = IndexModel(MODEL)
    numbers = match_numbers(model.folder)
    if numbers is None:
        return None
    names = [entry.name for entry in entries]
    content = "\n".join((model.fingerprint, str(numbers), *(f"{entry.name} {entry.phash}" for entry in entries)))
    kept = user_cache() / "icon-site" / f"others-{hashlib.sha256(content.encode()).hexdigest()[:16]}.v1.json"
    if not kept.exists():
        pictures = make_picture_set(names, [icon.aliases for icon in icons], vectors, numbers, model)
        found = CrossSetMatcher(pictures, numbers).all_equivalents(lambda done, _: on_set("in the other sets", done))
        write_bytes_atomic(kept, json.dumps(found).encode())
    return [[Equivalent(*one) for one in found] for found in json.loads(kept.read_bytes())]


def _entry(about: IconSet, icon: Icon, phash: int, look: bytes) -> Entry:
    fields: dict[str, str | int | float] = {
        "set": about.title,
        "style": icon.style,
        "licence": about.licence,
        "author": about.author,
        "colours": "one" if "currentColor" in icon.body else "several",
        "page": f"{SITE_OF_SETS}/{about.prefix}/{icon.name}/",
    }
    return Entry(
        name=f"{about.prefix}:{icon.name}",
        root="",
        file="",
        offset=None,
        stamp=Stamp(len(icon.svg), 0),
        digest="",
        phash=phash,
        pixel_signature=look,
        width=round(icon.box[2]),
        height=round(icon.box[3]),
        caption=icon.caption,
        fields=fields,
    )


def _notice(sets: Iterable[IconSet], counts: Mapping[str, int]) -> str:
    """Return the sets with their authors and licences, which some of the licences ask for."""
    lines = ["The icons of this site, by set. Each is under the licence of its set.", ""]
    for about in sorted(sets, key=lambda one: one.title.lower()):
        if counts.get(about.title):
            lines.append(
                f"{about.title}: {counts[about.title]:,} icons by {about.author}, {about.licence}. {about.url}"
            )
    return "\n".join([*lines, ""])


def main() -> None:
    """Parse the flags, and build."""
    parser = argparse.ArgumentParser(prog="icon_site", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the site")
    parser.add_argument("--sets", nargs="+", help="prefixes of sets in Iconify; if not given, well-known ones")
    parser.add_argument("--all", action="store_true", help="all sets of the corpus")
    parser.add_argument("--runtime", type=Path, help="archive of the npm package onnxruntime-web")
    args = parser.parse_args()
    prefixes = [] if args.all else args.sets or KNOWN.split()
    count = build(args.out, prefixes, args.runtime, lambda prefix, done: print(f"{prefix}: {done:,}", flush=True))
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()) / 1e6
    print(f"{count:,} icons, {size:.0f} MB, are in {args.out}; try it: python -m http.server --directory {args.out}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
