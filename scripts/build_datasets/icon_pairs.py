"""The pairs of the corpus `icons`: which drawn icons are kept, under which captions, in which split.

Not trained on are whole design families, and the test pictures of the corpora that measure transfer.
`icon_families.json` is what `icon_families.py` wrote: measured once, since a corpus that is the same on every machine
cannot hang on a measurement that is made anew on each.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from icon_captions import brand_captions, caption_of, further_caption, is_logo, style_words
from icon_drawings import DrawnSet, read_drawn
from icon_sources import Words
from shards import unit_hash

IDENTICAL = 3
"""Root mean square difference of two signatures, of 255, up to which two pictures are the same one, drawn again."""


FAMILIES = Path(__file__).with_name("icon_families.json")
TRANSFER_TESTS = Path(__file__).with_name("icon_transfer_tests.npz")

VAL = ("bi", "iconoir")
"""Sets of `val`."""

TEST = ("tabler", "carbon", "game-icons", "flat-color-icons", "pixel", "roentgen")
"""Sets of `test_family`: thin lines, solid glyphs, game art, many colours, pixel art, signs of maps."""


@dataclass(frozen=True)
class HeldOut:
    """Families of sets (each set's family, named by its first set), and signatures that no training picture has."""

    families: Mapping[str, str]
    signatures: np.ndarray

    @classmethod
    def read(cls) -> "HeldOut":
        """What this version of the corpus holds out."""
        groups = json.loads(FAMILIES.read_text(encoding="utf-8"))
        families = {prefix: group[0] for group in groups for prefix in group}
        with np.load(TRANSFER_TESTS, allow_pickle=False) as file:
            return cls(families, file["signatures"])

    def family_of(self, prefix: str) -> str:
        """The family of a set."""
        return self.families[prefix]

    def split_of(self, prefix: str) -> str | None:
        """The split of a set: `train`, `val`, `test_family_SET`, or none if it draws like a set that is held out."""
        if prefix in VAL:
            return "val"
        if prefix in TEST:
            return f"test_family_{prefix}"
        return None if self.family_of(prefix) in self._held_out else "train"

    @cached_property
    def _held_out(self) -> set[str]:
        return {self.family_of(prefix) for prefix in (*VAL, *TEST) if prefix in self.families}


def has_near(queries: np.ndarray, others: np.ndarray, near: int) -> np.ndarray:
    """Which signatures have another one within a root mean square difference of `near`.

    The sums are of integers below 2^24, so fp32 holds them exactly, and the answer is the same on any machine.
    """
    if not len(others):
        return np.zeros(len(queries), bool)
    references = others.astype(np.float32)
    squared = (references**2).sum(axis=1)
    found = [np.zeros(0, bool)]
    for part in np.array_split(queries, max(1, len(queries) // 1024)):
        part = part.astype(np.float32)
        distances = (part**2).sum(axis=1)[:, None] - 2 * part @ references.T + squared
        found.append(distances.min(axis=1) <= near**2 * queries.shape[1])
    return np.concatenate(found)


# --- Pairs

MAX_MORE = 4
"""Further captions of a training pair, of all tags and aliases."""

TEST_SHARE = 0.012
"""Share of the training families' drawings of things that are kept for `test`."""

MAX_EVALUATED = 2_000
"""Pictures of an evaluation split, each with another caption, drawn by hash."""


@dataclass(frozen=True, kw_only=True)
class IconPair:
    """A picture of the corpus, by its place in the drawn set, and its captions.

    `tags` of an evaluation split are what search is measured with; in training they are further captions.
    """

    prefix: str
    index: int
    name: str
    caption: str
    tags: tuple[str, ...]
    split: str

    @property
    def key(self) -> str:
        """`SET_NAME`, unique in the corpus."""
        return f"{self.prefix}_{self.name}"


@dataclass
class Selection:
    """The pairs of the corpus, and how many icons of each set were left out for which reason."""

    pairs: list[IconPair]
    left_out: dict[str, Counter[str]] = field(default_factory=dict)


def select(
    prefixes: Iterable[str],
    drawn_folder: Path,
    logo_names: Iterable[Iterable[str]],
    tags: Mapping[str, Words],
    held_out: HeldOut,
) -> Selection:
    """Caption the drawn icons and give each its split.

    Args:
        prefixes: the sets of the corpus.
        drawn_folder: where their drawings lie.
        logo_names: names in sets of logos: icons of these names are left out.
        tags: further words, by set and name.
        held_out: what is not trained on.
    """
    brands = brand_captions(logo_names)
    selection = Selection([])
    digests: list[bytes] = []
    for prefix in prefixes:
        drawn = read_drawn(drawn_folder, prefix)
        counts = selection.left_out.setdefault(prefix, Counter(drawn.left_out))
        split = held_out.split_of(prefix)
        if split is None:
            counts["draws like a held-out set"] += len(drawn.names)
            continue
        is_kept = ~has_near(drawn.signatures, held_out.signatures, IDENTICAL) if split == "train" else None
        for pair in _captioned(prefix, drawn, brands, tags.get(prefix, {}), split, counts):
            if is_kept is not None and not is_kept[pair.index]:
                counts["a test picture of another corpus"] += 1
                continue
            selection.pairs.append(pair)
            digests.append(drawn.digests[pair.index].tobytes())
    _drop_identical(selection, digests)
    selection.pairs = _with_shared_tags(selection.pairs, held_out)
    _thin_evaluation(selection)
    return selection


def _captioned(
    prefix: str, drawn: DrawnSet, brands: frozenset[str], words: Words, family_split: str, counts: Counter[str]
) -> Iterable[IconPair]:
    styles = style_words(drawn.names, drawn.styles)
    own = {caption_of(name, styles): further for name, further in words.items()}
    for index, name in enumerate(drawn.names):
        caption = caption_of(name, styles)
        if is_logo(name, caption, brands):
            counts["logo"] += 1
            continue
        aliases = (further_caption(alias) for alias in drawn.aliases.get(name, []))
        tags = tuple(dict.fromkeys(word for word in (*aliases, *own.get(caption, ())) if word and word != caption))
        yield IconPair(prefix=prefix, index=index, name=name, caption=caption, tags=tags, split=family_split)


def _drop_identical(selection: Selection, digests: list[bytes]) -> None:
    """Keep one of identical pictures, a training one where there is one, so that nothing evaluates what was trained."""
    order = sorted(range(len(digests)), key=lambda i: selection.pairs[i].split != "train")
    seen: set[bytes] = set()
    kept = []
    for number in order:
        if digests[number] in seen:
            selection.left_out[selection.pairs[number].prefix]["identical picture"] += 1
        else:
            seen.add(digests[number])
            kept.append(number)
    selection.pairs = [selection.pairs[number] for number in sorted(kept)]


def _with_shared_tags(pairs: list[IconPair], held_out: HeldOut) -> list[IconPair]:
    """Training pairs with the tags of all training pairs of the same caption, and a share of them moved to `test`.

    A drawing of a thing moves with its variants: all pictures of one caption in a family.
    """
    by_caption: dict[str, dict[str, None]] = {}
    for pair in pairs:
        if pair.split == "train":
            by_caption.setdefault(pair.caption, {}).update(dict.fromkeys(pair.tags))
    result = []
    for pair in pairs:
        if pair.split != "train":
            result.append(pair)
            continue
        is_test = unit_hash("icons test", f"{held_out.family_of(pair.prefix)}/{pair.caption}") < TEST_SHARE
        shared = sorted(by_caption[pair.caption], key=lambda tag: (tag not in pair.tags, unit_hash(pair.key, tag)))
        result.append(replace(pair, tags=tuple(shared[:MAX_MORE]), split="test" if is_test else "train"))
    return result


def _thin_evaluation(selection: Selection) -> None:
    """At most MAX_EVALUATED pictures in each evaluation split, each with a caption of its own."""
    taken: dict[str, set[str]] = {}
    kept = []
    for pair in sorted(selection.pairs, key=lambda pair: unit_hash("icons order", pair.key)):
        if pair.split != "train":
            captions = taken.setdefault(pair.split, set())
            if pair.caption in captions or len(captions) == MAX_EVALUATED:
                selection.left_out[pair.prefix][f"not drawn for {pair.split.partition('_')[0]}"] += 1
                continue
            captions.add(pair.caption)
        kept.append(pair)
    selection.pairs = kept
