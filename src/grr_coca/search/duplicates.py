"""Near-duplicates: pictures whose perceptual hashes and embeddings are both nearly equal.

The hash alone confuses thin drawings on white; the embedding alone confuses two drawings of one thing. If both agree,
it is the same picture, scaled, recompressed or retouched.

Shapes: N pictures.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from grr_coca.search.entry import Entry
from grr_coca.search.phash import differing_bits
from grr_coca.search.store import Store
from grr_coca.search.words import pieces

MOST_BITS = 6
"""Bits of a hash, of 64, in which near-duplicates may differ."""
LEAST_COSINE = 0.95
"""The smallest cosine of the embeddings of near-duplicates."""
BANDS = MOST_BITS + 1
"""Number of bands that a hash is cut into. Two hashes that differ in fewer bits than this have an equal band."""
LARGEST_BUCKET = 5000
"""Up to this many pictures with an equal band are all compared with each other. Of more, such as blank ones, each is
compared with this many."""


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

    A pair may come more than once. Places that are joined at the start are represented by one of them.
    """
    places = np.unique(parents)
    hashes = hashes[places]
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1)
    for band in np.array_split(np.arange(64), BANDS):
        keys = bits[:, band] @ (2 ** np.arange(len(band)))
        order = np.lexsort((hashes, keys))
        # Places with one key lie side by side: hold each against the next, the one after it, and so on. Equal hashes
        # come first, however many share the key.
        for distance in range(1, LARGEST_BUCKET):
            same = np.flatnonzero(keys[order[distance:]] == keys[order[:-distance]])
            if not len(same):
                break
            pairs = np.stack([order[same], order[same + distance]], axis=1)
            pairs = pairs[_roots(parents, places[pairs[:, 0]]) != _roots(parents, places[pairs[:, 1]])]
            near = differing_bits(hashes[pairs[:, 0]], hashes[pairs[:, 1]]) <= MOST_BITS
            if near.any():
                yield places[pairs[near]]


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
