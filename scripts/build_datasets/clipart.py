"""Open Clip Art: drawings by many hands with the artists' own titles, the noisiest of the corpora."""

from __future__ import annotations

import html
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from packages import Sources
from PIL import Image
from raster import encode_webp, fit_square, ink_box, on_white, render_svg
from shards import Corpus, Sample, drop_identical, drop_near_train, pick_split, unit_hash
from vocabulary import english, foreign, words_of

ROOT = "./usr/share/openclipart/svg/"
SHARES = {"val": 0.06, "test": 0.14}
COUNT, PER_STEM = 1180, 4
QUALITY, NEAR = 70, 2.0
DRAWN = 512  # pixels of the longest side before cropping
MAX_FILE_BYTES = 400_000  # bounds the time of a drawing by its input, not by a clock
MAX_ASPECT = 4.0
MIN_INK = 0.04  # mean darkness; below it a drawing at 64 pixels is a few pale threads

COLLECTION = re.compile(
    r"gramastar|^part of|clipart|clip art|\btheme\b|\bicons?\b|collection|iconset|aiga|sibmission|various|etiquette"
    r"|road signs|gradient|\bpack\b|\bset\b|symbols\b|\bsvg\b|untitled|unnamed|^drawing|test\b|logo|\bflags?\b|\bled\b"
    r"|www|http|@|\bby\b|hexagram|jigsaw|flourish|\bmaps?\b"
)
UNSUITABLE = re.compile(r"nud|naked|sex|stripper|\bbabe\b|nazi|swastika|hitler|porn|erotic|bikini|lingerie|suicide")
SKIPPED_FOLDERS = (
    "signs_and_symbols/flags",
    "logos",
    "special",
    "unsorted",
    "shapes/stars",
    "recreation/games/cards",
)
_EMPTY = """
hash unsorted icon icons theme special menu openclipart clipart image images png svg drawing vector
color colour bw signs_and_symbols symbol symbols sign shape shapes misc other none test webpage
activities mapsym networksym musicsym weathersym musicstuff religholiday roadtravel airtravel
miscellany all work objects object logo lineart inkscape sodipodi creation appicon flat general
ideas study place
"""
EMPTY_KEYWORDS = frozenset(_EMPTY.split())

ABOUT = (
    "Drawings from the Open Clip Art Library with the artist's title and up to three of the keywords: objects, "
    "animals, food, people, tools and scenes, by several hundred hands."
)
SPLIT_RULE = (
    "By title stem (the title without numbers, brackets and plural), drawn by hash, so that 'car 1' and 'car 2' lie "
    "in one split. At most four drawings of a stem are taken. Pixel-identical drawings are kept once; evaluation "
    "images that differ from a training image by less than 2/255 on average are dropped."
)
FAULTS = [
    "The titles are what the artists wrote: some are misspelt, vague or a name of their own.",
    "Titles in other languages are kept out by word lists; a few remain.",
    "Keywords mix the object with its theme (food, festive, transport).",
    "Variants of one drawing under unrelated titles may lie in different splits.",
]


@dataclass(frozen=True)
class Art:
    """One file's metadata, cleaned."""

    path: str
    title: str
    keywords: tuple[str, ...]
    artists: tuple[str, ...]


def _texts(work: ET.Element, tag: str, leaf: str) -> list[str]:
    found = [child for child in work if child.tag.endswith("}" + tag)]
    leaves = [e.text or "" for child in found for e in child.iter() if e.tag.endswith("}" + leaf)]
    return [text.strip() for text in leaves if text.strip()]


def clean_title(raw: str) -> str:
    """Lower case, words apart, without file endings, numbers and variant marks."""
    title = html.unescape(unicodedata.normalize("NFKC", raw)).lower().replace(".svg", "")
    title = re.sub(r"[_\-/]+", " ", title)
    title = re.sub(r"\(?\s*\bb\s*(and|&)?\s*w\b\s*\)?|\bbw\b", " black and white", title)
    title = re.sub(r"[(\[](.*?)[)\]]", r" \1 ", title)
    title = re.sub(r"\b(aj|v|ver|version|no|nr|alt|remix)\s*\d*$", " ", title.strip())
    title = re.sub(r"(?<=[a-z])\d+\b", " ", title)  # 'bee1'
    title = re.sub(r"\b[a-z]?\d+[a-z]?\b|[#.,;:!?\"]", " ", title)
    return re.sub(r"\s+", " ", title).strip(" '&+")


def read_art(path: str, svg: bytes) -> Art | None:
    """Read title, keywords and artists; None where the file says GPL or cannot be read."""
    try:
        root = ET.fromstring(svg)
    except ET.ParseError:
        return None
    work = next((e for e in root.iter() if e.tag.endswith("}Work")), None)
    licences = [e for e in root.iter() if e.tag.endswith("}license") or e.tag.endswith("}License")]
    if work is None or any("GPL" in value for e in licences for value in e.attrib.values()):
        return None
    titles = [c.text or "" for c in work if c.tag.endswith("}title")]
    artists = [text.lower() for tag in ("creator", "publisher", "rights") for text in _texts(work, tag, "title")]
    keywords = [text.lower() for text in _texts(work, "subject", "li")]
    return Art(path, clean_title(titles[0] if titles else ""), tuple(keywords), tuple(artists))


def stem_of(title: str) -> str:
    """What numbered, bracketed and plural titles of a series have in common."""
    words = [w.removesuffix("s") if len(w) > 3 else w for w in words_of(title.replace("black and white", ""))]
    return " ".join(words)


def _is_titled(art: Art, repeats: Counter[str]) -> bool:
    """Tell a title of a drawing from that of a collection, and leave out what is unsuitable."""
    everything = " ".join([art.title, *art.keywords, art.path])
    skipped = {"flag", "flags", "led", "logo"} & set(art.keywords)
    folder_ok = not art.path.startswith(SKIPPED_FOLDERS) and not skipped
    named = 1 <= len(art.title.split()) <= 7 and len(art.title) > 2 and repeats[art.title] <= 12
    clean = not COLLECTION.search(art.title) and not UNSUITABLE.search(everything)
    return folder_ok and named and clean and art.title.isascii()


def _is_english(art: Art, known: set[str], other: set[str]) -> bool:
    """At least half the title's words are known, and none is a word of another language alone."""
    words = words_of(art.title)
    return sum(w in known for w in words) * 2 >= len(words) > 0 and not other & set(words)


def names_of(art: Art) -> set[str]:
    """Words of the artists' names."""
    return {w for artist in art.artists for w in words_of(artist) if len(w) > 2 and w not in ("public", "domain")}


def caption_of(art: Art, known: set[str]) -> str:
    """Title and up to three keywords that say more than their theme; artists' names are no keywords."""
    names = names_of(art)
    said = set(words_of(art.title)) | {stem_of(w) for w in words_of(art.title)}
    kept: list[str] = []
    for keyword in sorted(art.keywords):
        words = words_of(keyword.replace("_", " ").replace("bodypart", "body part"))
        new = set(words) - said - {w + "s" for w in said}
        if keyword in EMPTY_KEYWORDS or not new or len(words) > 2 or re.search(r"\d|symbol|vegit", keyword):
            continue
        if names & set(words) or not all(w in known and len(w) > 2 for w in words):
            continue
        kept.append(" ".join(words))
        said |= set(words)
    caption = art.title
    for keyword in kept[:3]:
        if len(caption.split()) + len(keyword.split()) <= 12:
            caption = f"{caption}, {keyword}"
    return caption


def draw(svg: bytes) -> Image.Image | None:
    """Draw, crop to the ink and bring to size; None where the file is unfit."""
    if len(svg) > MAX_FILE_BYTES or b"<image" in svg or b":image" in svg:
        return None
    image = render_svg(svg.decode("utf-8", "replace"), DRAWN)
    if image is None:
        return None
    flat = on_white(image)
    box = ink_box(flat)
    if box is None:
        return None
    width, height = box[2] - box[0], box[3] - box[1]
    if max(width, height) < 80 or max(width, height) > MAX_ASPECT * min(width, height):
        return None
    small = fit_square(flat, box)
    return small if (255 - np.asarray(small).min(axis=2)).mean() >= 255 * MIN_INK else None


def choose(files: dict[str, bytes], sources: Sources) -> tuple[list[Art], set[str]]:
    """Return the fit titles, a few of each stem, in hash order; and the English words."""
    read = [read_art(path.removeprefix(ROOT), svg) for path, svg in files.items()]
    art = [a for a in read if a is not None]
    repeats = Counter(a.title for a in art)
    titled = [a for a in art if _is_titled(a, repeats)]
    known = english(sources, [text for a in titled for text in a.keywords if not names_of(a) & set(words_of(text))])
    other = foreign(sources, known)
    stems: dict[str, list[Art]] = defaultdict(list)
    for a in sorted(titled, key=lambda a: unit_hash("clipart", a.path)):
        if _is_english(a, known, other):
            stems[stem_of(a.title)].append(a)
    chosen = [a for group in stems.values() for a in group[:PER_STEM]]
    return sorted(chosen, key=lambda a: unit_hash("clipart", a.path)), known


def build(sources: Sources) -> Corpus:
    """Return the corpus."""
    files = sources.read("openclipart", lambda name: name.startswith(ROOT) and name.endswith(".svg"))
    chosen, known = choose(files, sources)
    samples: list[Sample] = []
    for art in chosen:
        image = draw(files[ROOT + art.path])
        if image is not None and len(samples) < COUNT:
            key = re.sub(r"[^a-z0-9_-]", "_", art.path.removesuffix(".svg").lower().replace("/", "-"))
            split = pick_split("clipart-split", stem_of(art.title), SHARES)
            samples.append(Sample(key, encode_webp(image, QUALITY), caption_of(art, known), split))
    samples = drop_near_train(drop_identical(samples), NEAR)
    title = "Open Clip Art"
    return Corpus("clipart", title, ABOUT, SPLIT_RULE, FAULTS, ["openclipart"], samples)
