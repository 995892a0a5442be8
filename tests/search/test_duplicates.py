"""Near-duplicates among hits."""

import numpy as np
import pytest

from grr_coca.search.duplicates import LEAST_COSINE, MOST_BITS, folded


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
