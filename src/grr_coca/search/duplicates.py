"""Near-duplicates: pictures whose perceptual hashes and embeddings are both nearly equal.

The hash alone confuses thin drawings on white; the embedding alone confuses two drawings of one thing. If both agree,
it is the same picture, scaled, recompressed or retouched.

Shapes: N pictures.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from grr_coca.search.entry import Entry, pieces
from grr_coca.search.phash import differing_bits
from grr_coca.search.store import Store

MOST_BITS = 6
"""Bits of a hash, of 64, in which near-duplicates may differ."""
LEAST_COSINE = 0.95
"""The smallest cosine of the embeddings of near-duplicates."""
EQUAL_BANDS = 3
BANDS = MOST_BITS + EQUAL_BANDS
"""Number of bands that a hash is cut into. Of two hashes that differ in at most `MOST_BITS` bits, `EQUAL_BANDS` bands
are equal, whichever the bits are."""
LARGEST_BUCKET = 2000
"""Up to this many pictures with these bands in common are all compared with each other. Of more, such as blank ones,
each is compared with this many."""


@dataclass(frozen=True)
class Group:
    """Pictures that look the same; the largest in pixels comes first."""

    entries: list[Entry]


def duplicate_groups(store: Store) -> list[Group]:
    """All groups of near-duplicates, the largest first."""
    with store.snapshot():
        hashed = store.hashes()
        ids = hashed["id"]
        parents = _first_of_equal(hashed["digest"])
        for pairs in _alike(hashed["phash"], parents):
            for a, b in (np.array(piece).T for piece in pieces(pairs.tolist(), 4096)):
                cosines = (store.vectors(ids[a].tolist()) * store.vectors(ids[b].tolist())).sum(axis=1)
                for one, other in zip(a[cosines >= LEAST_COSINE], b[cosines >= LEAST_COSINE], strict=True):
                    _join(parents, int(one), int(other))
        groups: dict[int, list[int]] = {}
        for place in range(len(ids)):
            groups.setdefault(_root(parents, place), []).append(int(ids[place]))
        several = sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)
        return [Group(_largest_first(store.entries(group))) for group in several]


def folded(vectors: np.ndarray, hashes: np.ndarray) -> list[list[int]]:
    """The places of N hits, in groups of near-duplicates. Groups are in the order of the best hit of each."""
    groups: list[list[int]] = []
    firsts = np.empty(len(hashes), np.int64)  # place of the best of each group
    for place in range(len(hashes)):
        bests = firsts[: len(groups)]
        near = np.flatnonzero(differing_bits(hashes[bests], hashes[place]) <= MOST_BITS)
        alike = near[vectors[bests[near]] @ vectors[place] >= LEAST_COSINE]
        if len(alike):
            groups[alike[0]].append(place)
        else:
            firsts[len(groups)] = place
            groups.append([place])
    return groups


def _first_of_equal(digests: np.ndarray) -> np.ndarray:
    """For each digest, the place of the first one that is equal: N."""
    _, firsts, kinds = np.unique(digests, return_index=True, return_inverse=True)
    return firsts[kinds]


def _alike(hashes: np.ndarray, parents: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of places whose hashes differ in few bits, and which are not joined yet, in arrays P 2.

    Places that are joined at the start are represented by one of them. Places with the same values in some bands lie
    side by side when they are sorted by these, and only those are held against each other: N pictures with hashes at
    random make a few N comparisons, as long as there are not many more than 2²¹ of them.
    """
    places = np.unique(parents)
    places = places[np.argsort(hashes[places], kind="stable")]  # of one key, those of equal hashes come first
    hashes = hashes[places]
    bands = _bands(hashes)
    for chosen in combinations(range(BANDS), EQUAL_BANDS):
        keys = np.zeros(len(places), np.uint32)
        for band in chosen:
            keys = keys << 8 | bands[band]
        order = np.argsort(keys, kind="stable")
        for a, b in _neighbours(keys[order]):
            pairs = np.stack([order[a], order[b]], axis=1)
            for band in set(range(chosen[-1])).difference(chosen):  # else the pair has come before, by this band
                pairs = pairs[bands[band][pairs[:, 0]] != bands[band][pairs[:, 1]]]
            pairs = places[pairs[differing_bits(hashes[pairs[:, 0]], hashes[pairs[:, 1]]) <= MOST_BITS]]
            pairs = pairs[_roots(parents, pairs[:, 0]) != _roots(parents, pairs[:, 1])]
            if len(pairs):
                yield pairs


def _bands(hashes: np.ndarray) -> list[np.ndarray]:
    """The bits of N hashes in bands of seven or eight, which have no bit in common: N numbers for each band."""
    ends = [64 * band // BANDS for band in range(BANDS + 1)]
    bits = hashes.view(np.uint64)
    return [
        (bits >> np.uint64(start) & np.uint64(2 ** (end - start) - 1)).astype(np.uint32)
        for start, end in pairwise(ends)
    ]


def _neighbours(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of equal keys in a sorted array, in pairs: first each with the next, then each with the one after."""
    first = np.arange(len(keys))
    for distance in range(1, LARGEST_BUCKET):
        first = first[: np.searchsorted(first, len(keys) - distance)]
        first = first[keys[first] == keys[first + distance]]
        if not len(first):
            return
        yield first, first + distance


def _largest_first(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (-entry.width * entry.height, entry.name))


def _root(parents: np.ndarray, place: int) -> int:
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = int(parents[place])
    return place


def _roots(parents: np.ndarray, places: np.ndarray) -> np.ndarray:
    roots = parents[places]
    while not np.array_equal(above := parents[roots], roots):
        roots = above
    parents[places] = roots
    return roots


def _join(parents: np.ndarray, one: int, other: int) -> None:
    a, b = sorted((_root(parents, one), _root(parents, other)))
    parents[b] = a
