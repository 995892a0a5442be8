"""Near-duplicates, and the perceptual hash, which must not change, because indexes store it."""

import io
import subprocess
import sys
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from library import make_entry, make_vectors
from PIL import Image

from grr_coca.data.isolated import decode_image
from grr_coca_search.duplicates import BANDS, EQUAL_BANDS, duplicate_groups
from grr_coca_search.entry import MAX_BITS, MIN_COSINE
from grr_coca_search.picture_facts import compute_pixel_signature, perceptual_hash
from grr_coca_search.query import group_hits
from grr_coca_search.store import Changes


def one_by_one(vectors: np.ndarray, hashes: np.ndarray) -> list[list[int]]:
    """The same without arrays: each hit goes to the first group whose best it looks like."""
    groups: list[list[int]] = []
    for place in range(len(hashes)):
        for group in groups:
            bits = (int(hashes[group[0]]) ^ int(hashes[place])) & (2**64 - 1)
            if bits.bit_count() <= MAX_BITS and vectors[group[0]] @ vectors[place] >= MIN_COSINE:
                group.append(place)
                break
        else:
            groups.append([place])
    return groups


def fold(vectors: np.ndarray, hashes: np.ndarray) -> list[list[int]]:
    return group_hits(vectors, [make_entry(number, phash=int(phash)) for number, phash in enumerate(hashes)])


@pytest.mark.parametrize("seed", range(5))
def test_hits_join_the_first_group_whose_best_they_look_like(seed):
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 6, 80)
    hashes = random.integers(-(2**63), 2**63, 6)[kinds] ^ (1 << random.integers(0, 62, (4, 80))).sum(axis=0)
    vectors = random.standard_normal((6, 16))[kinds] + 0.12 * random.standard_normal((80, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = fold(vectors, hashes)
    assert found == one_by_one(vectors, hashes)
    assert any(len(group) > 1 for group in found)
    assert len(found) > 6, "some of one kind look different"


def test_no_hit_makes_no_group():
    assert fold(np.empty((0, 4)), np.empty(0, np.int64)) == []


def groups_of(store) -> list[list[int]]:
    """The numbers of the images of each group."""
    return sorted(sorted(int(entry.title) for entry in group.entries) for group in duplicate_groups(store))


def add(store, hashes, vectors, **changes):
    entries = [make_entry(number, phash=int(phash), **changes) for number, phash in enumerate(hashes)]
    store.commit(Changes(added=list(zip(entries, vectors, strict=True))))


@pytest.mark.parametrize("changes", [{"digest": "0" * 32}, {}], ids=["equal", "recompressed"])
def test_many_duplicates_need_few_comparisons(store, monkeypatch, changes):
    asked, vectors = [], store.vectors
    add(store, [7] * 200, make_vectors(1).repeat(200, axis=0), **changes)
    monkeypatch.setattr(store, "vectors", lambda ids: asked.extend(ids) or vectors(ids))
    assert groups_of(store) == [list(range(200))]
    assert len(asked) <= 2 * 200


def test_equal_hashes_are_found_beyond_the_comparison_limit(store, monkeypatch):
    monkeypatch.setattr("grr_coca_search.duplicates.MAX_BUCKET", 3)
    chosen = list(combinations(range(BANDS), EQUAL_BANDS)) * 5  # bands that are as those of the first and the last
    ends = [64 * band // BANDS for band in range(BANDS + 1)]
    hashes = np.zeros(2 + len(chosen), np.uint64)
    for number, equal in enumerate(chosen, 1):
        others = set(range(BANDS)).difference(equal)
        hashes[number] = sum(1 << bit for band in others for bit in range(*ends[band : band + 2]))
    add(store, hashes.view(np.int64), make_vectors(len(hashes)) * 0 + make_vectors(1))
    assert [0, len(hashes) - 1] in groups_of(store)


def test_pair_in_a_crowd_is_found_by_bands_that_few_have(store, monkeypatch):
    """Many images agree in the first bands. A pair of them that also agrees elsewhere is compared there."""
    monkeypatch.setattr("grr_coca_search.duplicates.MAX_BUCKET", 3)
    random = np.random.default_rng(0)
    hashes = random.integers(-(2**63), 2**63, 60) & ~np.int64(2**21 - 1)
    hashes[30:] = hashes[:30] ^ (np.int64(1) << np.int64(62))
    add(store, hashes, make_vectors(1).repeat(60, axis=0))
    assert groups_of(store) == [[number, number + 30] for number in range(30)]


# --- Perceptual hash


@cache
def waves(seed: int) -> Image.Image:
    """An image of a few soft waves."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:200, :200] / 200
    levels = np.zeros((200, 200))
    for _ in range(12):
        across, down, phase, height = generator.uniform((0, 0, 0, 0.2), (6, 6, 6, 1))
        levels += height * np.cos(np.pi * (across * x + down * y) + phase)
    levels = 255 * (levels - levels.min()) / np.ptp(levels)
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def bits_between(first: Image.Image, second: Image.Image) -> int:
    return ((perceptual_hash(first) ^ perceptual_hash(second)) & (2**64 - 1)).bit_count()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_hash_and_pixel_signature_are_those_of_arrays(mode):
    for seed in range(20):
        noise = np.random.default_rng(seed).integers(0, 256, (23, 31, 3), np.uint8)
        image = Image.fromarray(noise).resize((300, 200)).convert(mode)
        cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR, reducing_gap=4), int)
        bits = np.packbits(cells[:, 1:] - cells[:, :-1] > 12).tobytes()
        small = image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR, reducing_gap=4)
        levels = np.rint(np.asarray(small).ravel() / 17).astype(int)
        assert perceptual_hash(image) == int.from_bytes(bits, signed=True)
        assert compute_pixel_signature(image) == bytes((16 * levels[::2] + levels[1::2]).tolist())


def test_helper_program_for_pictures_imports_no_numpy():
    code = (
        "import sys, grr_coca_search.picture_facts; print(sorted({'numpy', 'tokenizers', 'sqlite3'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "changed",
    [lambda image: image.resize((90, 90)), recompressed, lambda image: image.resize((400, 400))],
    ids=["smaller", "recompressed", "larger"],
)
def test_edits_change_few_bits_of_the_hash(changed):
    assert max(bits_between(waves(seed), changed(waves(seed))) for seed in range(10)) <= 6


@pytest.mark.ci
def test_other_images_have_other_bits():
    between = [bits_between(waves(first), waves(second)) for first in range(10) for second in range(first)]
    assert 20 < np.mean(between) < 38
    assert min(between) > MAX_BITS


def drawn(shapes: str, colour: str = "#1b1b1a", side: int = 128) -> Image.Image:
    """An icon in thin lines, as sets have them."""
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" width="24" height="24" fill="none" '
        f'stroke="{colour}" stroke-width="2">{shapes}</svg>'
    )
    return decode_image(svg.encode(), "icon.svg").resize((side, side), Image.Resampling.LANCZOS).convert("RGB")


CART = '<path d="M6 17h11l2-10H6M6 5v12"/><circle cx="7" cy="20" r="1"/><circle cx="16" cy="20" r="1"/>'
HEART = '<path d="M12 20 5 12a4 4 0 0 1 7-5 4 4 0 0 1 7 5z"/>'
DIFFERENT = [
    (drawn(CART + '<path d="M20 3v2M20 9h.01"/>'), drawn(CART + '<path d="M22 3h-3v2h3v2h-3"/>')),
    (drawn(HEART, "#d21"), drawn(HEART, "#1a3")),
    (drawn('<circle cx="8" cy="8" r="1"/><circle cx="16" cy="16" r="1"/>'), drawn('<circle cx="8" cy="8" r="1"/>')),
]


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_different_drawings_with_equal_embeddings_stay_separate(first, second):
    entries = [
        make_entry(number, phash=perceptual_hash(image), pixel_signature=compute_pixel_signature(image))
        for number, image in enumerate((first, second))
    ]
    assert group_hits(np.ones((2, 1)), entries) == [[0], [1]]


@pytest.mark.parametrize("side", [48, 90, 300])
def test_copies_of_thin_drawings_are_folded(side):
    for first, second in DIFFERENT:
        for image in (first, second):
            copy = recompressed(image.resize((side, side), Image.Resampling.BICUBIC)).convert("RGB")
            entries = [
                make_entry(number, phash=perceptual_hash(one), pixel_signature=compute_pixel_signature(one))
                for number, one in enumerate((image, copy))
            ]
            assert group_hits(np.ones((2, 1)), entries) == [[0, 1]]


def test_without_small_copies_only_equal_bytes_are_folded():
    """As in an index that an older version has made."""
    entries = [make_entry(number, phash=7, pixel_signature=b"", digest=digest) for number, digest in enumerate("aab")]
    assert group_hits(np.ones((3, 1)), entries) == [[0, 1], [2]]
