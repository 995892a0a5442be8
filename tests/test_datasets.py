"""The corpora in `datasets/` are what their cards say, and nothing leaks from one split into another."""

import hashlib
import importlib.util
import io
import json
import re
import tarfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.ci
DATASETS = Path(__file__).parents[1] / "datasets"
CORPORA = ("pictograms", "health", "clipart", "glyphs")
FITTED = ("train", "val", "test")


@dataclass(frozen=True)
class Pair:
    split: str
    key: str
    caption: str
    size: tuple[int, int]
    mode: str
    pixels: str


@cache
def card(corpus: str) -> dict:
    return json.loads((DATASETS / corpus / "card.json").read_text(encoding="utf-8"))


def shard_members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


@cache
def pairs(corpus: str) -> list[Pair]:
    found = []
    for path in sorted((DATASETS / corpus).glob("*.tar")):
        members = shard_members(path)
        for (image_name, webp), (text_name, text) in zip(members[::2], members[1::2], strict=True):
            key = image_name.removesuffix(".webp")
            assert (image_name, text_name) == (f"{key}.webp", f"{key}.txt")
            with Image.open(io.BytesIO(webp)) as image:
                size, mode, pixels = image.size, image.mode, hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
            found.append(Pair(path.name.rsplit("-", 1)[0], key, text.decode(), size, mode, pixels))
    return found


def straddling(names: dict[str, set[str]]) -> list[str]:
    """Names that occur in more than one split."""
    return sorted(name for name, splits in names.items() if len(splits) > 1)


def splits_by(corpus: str, name_of) -> dict[str, set[str]]:
    found = defaultdict(set)
    for pair in pairs(corpus):
        found[name_of(pair)].add(pair.split)
    return found


def style_and_concept(pair: Pair) -> tuple[str, str]:
    style = next(s for s in sorted(card("pictograms")["styles"], key=len, reverse=True) if pair.key.startswith(s + "-"))
    return style, pair.key.removeprefix(style + "-")


def clipart_stem(pair: Pair) -> str:
    title = pair.caption.split(", ")[0].replace("black and white", "")
    return " ".join(word.removesuffix("s") if len(word) > 3 else word for word in re.findall(r"[^\W\d_]+", title))


def health_concept(pair: Pair) -> str:
    return re.sub(r"^(filled|outline)-(24px-)?", "", pair.key)


def test_all_corpora_stay_under_thirty_megabytes():
    assert {path.name for path in DATASETS.iterdir()} == set(CORPORA)
    assert sum(path.stat().st_size for path in DATASETS.rglob("*") if path.is_file()) <= 30_000_000


@pytest.mark.parametrize("corpus", CORPORA)
def test_card_names_every_shard_with_its_hash_and_count(corpus):
    splits = card(corpus)["splits"]
    stated = {name: sha256 for split in splits.values() for name, sha256 in split["shards"].items()}
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (DATASETS / corpus).glob("*.tar")}
    assert stated == found
    assert {name: split["count"] for name, split in splits.items()} == Counter(pair.split for pair in pairs(corpus))


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_pair_is_a_small_rgb_image_with_a_caption(corpus):
    wrong = [pair.key for pair in pairs(corpus) if (pair.size, pair.mode) != ((64, 64), "RGB")]
    assert not wrong
    wrong = [p.key for p in pairs(corpus) if not p.caption.strip() or p.caption != p.caption.strip().lower()]
    assert not wrong


@pytest.mark.parametrize("corpus", CORPORA)
def test_keys_are_unique_and_safe_in_a_shard(corpus):
    keys = Counter(pair.key for pair in pairs(corpus))
    assert max(keys.values()) == 1
    assert [key for key in keys if not re.fullmatch(r"[a-z0-9_-]+", key)] == []


@pytest.mark.parametrize("corpus", CORPORA)
def test_no_image_is_in_two_splits(corpus):
    assert straddling(splits_by(corpus, lambda pair: pair.pixels)) == []


def test_captions_of_pictograms_identify_concepts():
    captions, concepts = defaultdict(set), defaultdict(set)
    for pair in pairs("pictograms"):
        _, concept = style_and_concept(pair)
        captions[concept].add(pair.caption)
        concepts[pair.caption].add(concept)
    assert [name for name, values in (captions | concepts).items() if len(values) > 1] == []


def test_held_out_concepts_are_not_in_the_fitted_splits():
    held_out = set(card("pictograms")["held_out_concepts"])
    by_split = defaultdict(list)
    for pair in pairs("pictograms"):
        by_split[pair.split].append(pair)
    assert by_split["test_concept"]
    assert {style_and_concept(pair)[1] for pair in by_split["test_concept"]} <= held_out
    captions = {pair.caption for pair in by_split["test_concept"]}
    for split in (*FITTED, "test_style"):
        leaked = [p.key for p in by_split[split] if style_and_concept(p)[1] in held_out or p.caption in captions]
        assert not leaked, split


def test_held_out_style_is_not_in_the_fitted_splits():
    held_out = card("pictograms")["held_out_style"]
    styles = defaultdict(set)
    for pair in pairs("pictograms"):
        styles[pair.split].add(style_and_concept(pair)[0])
    assert styles["test_style"] == {held_out}
    assert held_out not in set().union(*(styles[split] for split in FITTED))


@pytest.mark.parametrize("split", ["val", "test", "test_style"])
def test_every_concept_of_these_splits_is_known_from_training(split):
    concepts = defaultdict(set)
    for pair in pairs("pictograms"):
        concepts[pair.split].add(style_and_concept(pair)[1])
    assert concepts[split]
    assert concepts[split] <= concepts["train"]


def test_style_family_has_a_concept_on_one_side_only():
    families = card("pictograms")["families"]
    assert families["noto"] == families["noto-v1"]

    def unit(pair: Pair) -> str:
        style, concept = style_and_concept(pair)
        return f"{families[style]} {concept}"

    assert straddling(splits_by("pictograms", unit)) == []


@pytest.mark.parametrize(
    ("corpus", "name_of"),
    [
        ("health", health_concept),
        ("health", lambda pair: pair.caption.split(", ")[0]),
        ("clipart", clipart_stem),
        ("glyphs", lambda pair: pair.key.rsplit("-", 1)[1]),
        ("glyphs", lambda pair: pair.caption),
    ],
    ids=["health concept", "health title", "clipart title", "glyph character", "glyph name"],
)
def test_groups_of_the_split_are_in_one_split_only(corpus, name_of):
    assert straddling(splits_by(corpus, name_of)) == []


def test_held_out_style_is_only_in_its_split(tmp_path):
    spec = importlib.util.spec_from_file_location("leave_out", DATASETS.parent / "studies" / "styles" / "leave_out.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for folder in ("once", "again"):
        module.leave_out("twemoji", DATASETS / "pictograms", tmp_path / folder)
    shards = {path.name: path for path in (tmp_path / "once").iterdir()}
    assert all(path.read_bytes() == (tmp_path / "again" / name).read_bytes() for name, path in shards.items())
    found = defaultdict(list)
    for name, path in shards.items():
        found[name.rsplit("-", 1)[0]] += module.drawings(path)
    assert all(pair.is_of("twemoji") for pair in found["left_out"])
    assert not any(pair.is_of("twemoji") for split, pairs in found.items() if split != "left_out" for pair in pairs)
    trained = {pair.caption for pair in found["train"]}
    assert all(pair.caption in trained for split in ("left_out", "val", "test") for pair in found[split])
    kept = sum(pair.split == "train" and not pair.key.startswith("twemoji-") for pair in pairs("pictograms"))
    assert (len(found["train"]), len(found["left_out"])) == (kept, 500)
