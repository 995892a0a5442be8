"""Near-duplicates among hits."""

from itertools import combinations

import numpy as np
import pytest
from library import make_picture, make_vectors

from grr_coca.search.duplicates import BANDS, EQUAL_BANDS, LEAST_COSINE, MOST_BITS, duplicate_groups, folded
from grr_coca.search.store import Changes


def one_by_one(vectors: np.ndarray, hashes: np.ndarray) -> list[list[int]]:
    """The same without arrays: each hit goes to the first group whose best it looks like."""
    groups: list[list[int]] = []
    for place in range(len(hashes)):
        for group in groups:
            bits = (int(hashes[group[0]]) ^ int(hashes[place])) & (2**64 - 1)
            if bits.bit_count() <= MOST_BITS and vectors[group[0]] @ vectors[place] >= LEAST_COSINE:
                group.append(place)
                break
        else:
            groups.append([place])
    return groups


@pytest.mark.parametrize("seed", range(5))
def test_hits_join_the_first_group_whose_best_they_look_like(seed):
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 6, 80)
    hashes = random.integers(-(2**63), 2**63, 6)[kinds] ^ (1 << random.integers(0, 62, (4, 80))).sum(axis=0)
    vectors = random.standard_normal((6, 16))[kinds] + 0.12 * random.standard_normal((80, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = folded(vectors, hashes)
    assert found == one_by_one(vectors, hashes)
    assert any(len(group) > 1 for group in found)
    assert len(found) > 6, "some of one kind look different"


def test_no_hit_makes_no_group():
    assert folded(np.empty((0, 4)), np.empty(0, np.int64)) == []


def groups_of(store) -> list[list[int]]:
    """The numbers of the pictures of each group."""
    return sorted(sorted(int(entry.title) for entry in group.entries) for group in duplicate_groups(store))


def add(store, hashes, vectors, **changes):
    entries = [make_picture(number, phash=int(phash), **changes) for number, phash in enumerate(hashes)]
    store.commit(Changes(added=list(zip(entries, vectors, strict=True))))


def test_groups_are_those_of_all_pairs(store):
    random = np.random.default_rng(0)
    kinds = random.integers(0, 20, 120)
    hashes = random.integers(-(2**63), 2**63, 20)[kinds] ^ (1 << random.integers(0, 62, (2, 120))).sum(axis=0)
    vectors = make_vectors(20)[kinds] + 0.04 * random.standard_normal((120, 32))
    vectors = np.float32(np.float16(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))
    add(store, hashes, vectors)
    names = list(range(120))
    for a, b in zip(*np.triu_indices(120, 1), strict=True):
        bits = (int(hashes[a]) ^ int(hashes[b])) & (2**64 - 1)
        if bits.bit_count() <= MOST_BITS and vectors[a] @ vectors[b] >= LEAST_COSINE:
            names = [names[a] if name == names[b] else name for name in names]
    groups = [[place for place in range(120) if names[place] == name] for name in set(names)]
    assert groups_of(store) == sorted(group for group in groups if len(group) > 1)
    assert len(groups) > 20, "some of one kind look different"


@pytest.mark.parametrize("changes", [{"digest": "0" * 32}, {}], ids=["equal", "recompressed"])
def test_many_pictures_that_look_the_same_are_held_against_few_others(store, monkeypatch, changes):
    asked, vectors = [], store.vectors
    add(store, [7] * 200, make_vectors(1).repeat(200, axis=0), **changes)
    monkeypatch.setattr(store, "vectors", lambda ids: asked.extend(ids) or vectors(ids))
    assert groups_of(store) == [list(range(200))]
    assert len(asked) <= 2 * 200


def test_equal_hashes_are_found_among_more_than_are_held_against_each_other(store, monkeypatch):
    monkeypatch.setattr("grr_coca.search.duplicates.LARGEST_BUCKET", 3)
    chosen = list(combinations(range(BANDS), EQUAL_BANDS)) * 5  # bands that are as those of the first and the last
    ends = [64 * band // BANDS for band in range(BANDS + 1)]
    hashes = np.zeros(2 + len(chosen), np.uint64)
    for number, equal in enumerate(chosen, 1):
        others = set(range(BANDS)).difference(equal)
        hashes[number] = sum(1 << bit for band in others for bit in range(*ends[band : band + 2]))
    add(store, hashes.view(np.int64), make_vectors(len(hashes)) * 0 + make_vectors(1))
    assert [0, len(hashes) - 1] in groups_of(store)
