"""The pairs of the corpus `icons`: which drawn icons are kept, under which captions, in which split.

Training leaves out whole design families, and the test pictures of the corpora that measure transfer.
The families in `icon_families.json` were measured once, by `scripts/build_datasets/icon_families.py` of commit
`a84b5aca`: if each machine measured them again, the corpus might differ from machine to machine.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from icon_captions import brand_captions, further_caption, is_logo
from icon_drawings import DrawnSet, read_drawn
from icon_sources import Words

from grr_coca_icons.icon_names import caption_of, style_words

IDENTICAL = 3
"""Largest root mean square difference of two signatures, of 255, at which two pictures count as identical."""


FAMILIES = Path(__file__).with_name("icon_families.json")
TRANSFER_TESTS = Path(__file__).with_name("icon_transfer_tests.npz")

VAL = ("bi", "iconoir")
"""Sets of `val`."""

TEST = ("tabler", "carbon", "game-icons", "flat-color-icons", "pixel", "roentgen")
"""Sets of `test_family`: thin lines, solid glyphs, game art, many colours, pixel art, signs of maps."""


@dataclass(frozen=True)
class HeldOut:
    """What training leaves out: the family of each set, named by its first set, and signatures of test pictures."""

    families: Mapping[str, str]
    signatures: np.ndarray

    @classmethod
    def read(cls) -> "HeldOut":
        """Read what this version of the corpus holds out."""
        groups = json.loads(FAMILIES.read_text(encoding="utf-8"))
        families = {prefix: group[0] for group in groups for prefix in group}
        with np.load(TRANSFER_TESTS, allow_pickle=False) as file:
            return cls(families, file["signatures"])

    def family_of(self, prefix: str) -> str:
        """Return the family of a set."""
        return self.families[prefix]

    def split_of(self, prefix: str) -> str | None:
        """Return the split of a set: `train`, `val`, `test_family_SET`, or None if its family is held out."""
        if prefix in VAL:
            return "val"
        if prefix in TEST:
            return f"test_family_{prefix}"
        return None if self.family_of(prefix) in self._held_out else "train"

    @cached_property
    def _held_out(self) -> set[str]:
        return {self.family_of(prefix) for prefix in (*VAL, *TEST) if prefix in self.families}


def has_near(queries: np.ndarray, others: np.ndarray, near: int) -> np.ndarray:
    """True for each query that has one of the others within a root mean square difference of `near`.

    Args:
        queries: signatures, N 256, uint8.
        others: signatures, M 256, uint8.
        near: largest difference, of 255.

    """
    # The sums are of integers below 2^24: fp32 holds them exactly, so the answer is the same on any machine.
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


def unit_hash(salt: str, name: str) -> float:
    """Return a number in [0, 1) that depends on the name alone, so that adding a sample moves no other."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:8], "big") / 2**64


# --- Pairs

MAX_MORE = 4
"""Most further captions of a training pair."""

TEST_SHARE = 0.012
"""Share of the things of each training family that are kept for `test`."""

MAX_EVALUATED = 2_000
"""Most pictures of an evaluation split, chosen by hash. Each has another caption."""


@dataclass(frozen=True, kw_only=True)
class IconPair:
    """A pair of the corpus: a picture (number `index` of the drawn set), its caption and its tags.

    `tags` are further captions in training. In evaluation splits, search is measured with them.
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
        held_out: what training leaves out.
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
    """Keep one of identical pictures, that of training if there is one: no picture is in training and in evaluation."""
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
    """Give training pairs the tags of all training pairs of the same caption, and move a share of them to `test`.

    All pictures of one caption in a family are variants of one thing, and move together.
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
    """Cut each evaluation split to MAX_EVALUATED pictures, each with a caption of its own."""
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
