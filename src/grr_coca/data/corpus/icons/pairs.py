"""The pairs of the corpus: which drawn icons are kept, under which captions, in which split."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from grr_coca.data.corpus.icons.captions import brand_captions, caption_of, further_caption, is_logo, style_words
from grr_coca.data.corpus.icons.drawn import DrawnSet, read_drawn
from grr_coca.data.corpus.icons.families import IDENTICAL, has_near
from grr_coca.data.corpus.icons.held_out import HeldOut
from grr_coca.data.corpus.icons.tags import Words

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


def unit_hash(salt: str, name: str) -> float:
    """A number in [0, 1) that depends on the name alone, so that adding an icon moves no other."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:8], "big") / 2**64
