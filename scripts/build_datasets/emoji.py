"""Pictograms: one concept in up to seven drawing styles, with a style and some concepts held out."""

from __future__ import annotations

from concepts import Concept, concept_groups, match_icons, read_concepts, read_icon_set
from packages import Sources
from raster import encode_webp, render_cropped
from shards import Corpus, Sample, drop_identical, drop_near_train, unit_hash

STYLES = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "fxemoji", "streamline-emojis", "emojione")
HELD_OUT_STYLE = "emojione"
FAMILY = {style: "noto" if style == "noto-v1" else style for style in STYLES}
HELD_OUT_SHARE, VAL_SHARE, TEST_SHARE = 0.05, 0.05, 0.05
NEAR = 2.0  # mean absolute difference, in 1/255
QUALITY = 55
TEST_STYLE_SHARE = 0.65  # of the held-out style: the rest would cost room and add little precision

ABOUT = (
    "Emoji as pictograms: each concept drawn in up to seven styles, with the same caption in all of them (the "
    "Unicode label, in lower case; emojibase's tags are left out: after the label they follow without a look at the "
    "image, and a captioner that learns them first learns the images late). It serves for pretraining and "
    "measures two kinds of generalisation apart: to a style and to concepts that were never seen. Drawings are cut to "
    "what is visible and have one narrow margin."
)
SPLIT_RULE = (
    "`test_concept` holds every style's drawings of about 5 % of the concept groups, drawn by hash; a group "
    "joins a concept with its man, woman, person, hair and direction variants. `test_style` holds emojione's "
    "drawings of concepts that train knows in other styles (two thirds of them, by hash). `val` and `test` hold "
    "units of (concept, style family) of the other styles whose concept stays in train in another family; noto "
    "and noto-v1 are one family. Of pixel-identical drawings the first in the order of the styles is kept; "
    "evaluation images that differ from a training image by less than 2/255 on average are dropped."
)
FAULTS = [
    "Flags and arrows look alike in all styles: report results with and without them. Only twemoji and emojione "
    "draw the countries' flags in full; streamline-emojis and noto-v1 have a few.",
    "fxemoji, streamline-emojis, noto-v1 and emojione carry no code points and are matched by name; a few drawings "
    "may show an older idea of the emoji (noto-v1's blobs, pistols that were revolvers).",
    "emojione draws 'man dancing' or 'detective' much as others do: the held-out style is a new hand, not a new world.",
    "Keys are `STYLE-HEXCODE`; the label of a regional indicator names a letter, not a country.",
]


def draw(sources: Sources, concepts: dict[str, Concept]) -> list[Sample]:
    """Draw everything that the sets hold, in the order of STYLES and then of emojibase."""
    sets = {style: read_icon_set(sources, style) for style in STYLES}
    matched = match_icons(sources, concepts, sets)
    samples = []
    for style in STYLES:
        for hexcode in (h for h in concepts if h in matched[style]):
            image = render_cropped(sets[style].svg(matched[style][hexcode]))
            if image is not None:
                webp = encode_webp(image, QUALITY)
                key = f"{style}-{hexcode.lower()}"
                samples.append(Sample(key, webp, concepts[hexcode].caption, "", style))
    return drop_identical(samples)


def hexcode_of(sample: Sample) -> str:
    """The concept of a sample, as its key tells it."""
    return sample.key.removeprefix(sample.style + "-").upper()


def held_out_concepts(concepts: dict[str, Concept]) -> set[str]:
    """Draw the concepts that no training split may show."""
    return {h for h, group in concept_groups(concepts).items() if unit_hash("concept", group) < HELD_OUT_SHARE}


def _unit_splits(families: dict[str, set[str]]) -> dict[tuple[str, str], str]:
    """Draw val and test units; the family with the largest draw always stays in train."""
    splits = {}
    for hexcode, members in families.items():
        draws = {family: unit_hash("unit", f"{hexcode}/{family}") for family in members}
        stays = max(members, key=lambda family: (draws[family], family))
        for family, value in draws.items():
            if family == stays or value >= VAL_SHARE + TEST_SHARE:
                splits[hexcode, family] = "train"
            else:
                splits[hexcode, family] = "val" if value < VAL_SHARE else "test"
    return splits


def assign_splits(samples: list[Sample], held_out: set[str]) -> list[Sample]:
    """Give every sample its split; drawings of the held-out style whose concept train lacks are dropped."""
    families: dict[str, set[str]] = {}
    for sample in samples:
        if sample.style != HELD_OUT_STYLE and hexcode_of(sample) not in held_out:
            families.setdefault(hexcode_of(sample), set()).add(FAMILY[sample.style])
    units = _unit_splits(families)
    placed = []
    for sample in samples:
        hexcode = hexcode_of(sample)
        if hexcode in held_out:
            split = "test_concept"
        elif sample.style == HELD_OUT_STYLE:
            tested = hexcode in families and unit_hash("test_style", hexcode) < TEST_STYLE_SHARE
            split = "test_style" if tested else ""
        else:
            split = units[hexcode, FAMILY[sample.style]]
        if split:
            placed.append(Sample(sample.key, sample.webp, sample.caption, split, sample.style))
    return placed


def build(sources: Sources) -> Corpus:
    """Return the corpus."""
    concepts = read_concepts(sources)
    held_out = held_out_concepts(concepts)
    samples = drop_near_train(assign_splits(draw(sources, concepts), held_out), NEAR)
    extra: dict[str, object] = {
        "styles": list(STYLES),
        "families": FAMILY,
        "held_out_style": HELD_OUT_STYLE,
        "held_out_concepts": sorted(h.lower() for h in held_out),
    }
    title = "Pictograms: emoji in seven styles"
    return Corpus("pictograms", title, ABOUT, SPLIT_RULE, FAULTS, ["emojibase", *STYLES], samples, extra)
