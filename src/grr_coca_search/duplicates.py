"""Find near-duplicates: copies of the same image that were scaled or compressed again. Different images are not merged.

Two images are near-duplicates if three comparisons agree: their perceptual hashes are nearly equal (this is tested
first, because it is the fastest test), their pixel signatures, which are small color copies, are nearly equal in every
pixel, and their embeddings are nearly equal. A hash cannot distinguish some thin drawings on white, and an embedding
cannot distinguish some drawings of the same concept, such as the numbers 72 and 73.

Shapes: N images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca_search.entry import MAX_BITS, MIN_COSINE, Entry, num_differing_bits, signatures_match, unpack_signatures
from grr_coca_search.store import Store

MAX_DISTANCE_LIMIT = 16
"""Largest value that a caller may choose instead of `MAX_BITS`. Hashes of unrelated images differ in 32 bits on
average, and rarely in fewer than 18."""
EQUAL_BANDS = 3
BANDS = MAX_BITS + EQUAL_BANDS
"""Number of bands (runs of adjacent bits) into which a hash is split. If two hashes differ in at most `MAX_BITS` bits,
at least `EQUAL_BANDS` of their bands are equal. If more bits may differ, the number of bands is correspondingly
larger."""
MAX_BUCKET = 2000
"""Maximum number of images with equal bands among which all pairs are compared. If more images have equal bands, as is
the case for blank images, each image is compared with only this many others."""


_CHUNK = 256
"""Maximum number of embedding pairs that are multiplied at a time, which bounds the memory of the products."""
_PAIRS = 2**14
"""Maximum number of pairs whose embeddings are in memory at the same time."""
_RAW_PAIRS = 2**18
"""Approximate number of pairs of images with equal bands whose hashes are compared at a time. Few pairs pass this
comparison."""
_MAX_SIGNATURES = 2**15
"""Number of small copies in memory above which all of them are discarded. Each copy has 768 bytes."""


@dataclass(frozen=True)
class Group:
    """Group of near-duplicate images.

    Attributes:
        entries: The images, at least two. The image with the most pixels comes first.
    """

    entries: list[Entry]

    @property
    def exact_copies(self) -> dict[str, str]:
        """Images whose bytes are equal to those of an earlier image in the group.

        The mapping is from the name of each such image to the name of the earlier image.
        """
        firsts: dict[str, str] = {}
        for entry in self.entries:
            firsts.setdefault(entry.digest, entry.name)
        return {entry.name: firsts[entry.digest] for entry in self.entries if firsts[entry.digest] != entry.name}


def duplicate_groups(store: Store, max_distance: int = MAX_BITS, min_cosine: float = MIN_COSINE) -> list[Group]:
    """Return all groups of near-duplicates in a store, the largest group first.

    Images with equal bytes are always in the same group.

    Args:
        store: Store with the images.
        max_distance: Maximum number of the 64 hash bits in which two near-duplicates may differ. Larger values take
            longer.
        min_cosine: Minimum cosine similarity between the embeddings of two near-duplicates.

    Raises:
        UserError: If `max_distance` or `min_cosine` is out of range, or the store cannot be read.
    """
    if not 0 <= max_distance <= MAX_DISTANCE_LIMIT:
        raise UserError(f"max_distance must be from 0 to {MAX_DISTANCE_LIMIT} bits, got {max_distance}")
    if not 0 <= min_cosine <= 1:
        raise UserError(f"min_cosine must be from 0 to 1, got {min_cosine:g}")
    with store.snapshot():
        hashed = store.hashes()
        ids = hashed["id"]

        # Small copies are cached, because an image that is similar to one other image is often similar to several.
        signatures: dict[int, np.ndarray] = {}

        def same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
            if len(signatures) > _MAX_SIGNATURES:
                signatures.clear()
            needed = np.unique([one, other])
            new = [place for place in needed.tolist() if place not in signatures]
            signatures.update(zip(new, unpack_signatures(store.entries(ids[new].tolist())), strict=True))
            first, second = (np.array([signatures[place] for place in places.tolist()]) for places in (one, other))
            return signatures_match(first, second) if len(one) else np.zeros(0, bool)

        def vectors(places: np.ndarray) -> np.ndarray:
            return store.vectors(ids[places].tolist())

        groups = _group_hashes(
            hashed["phash"], _first_of_equal(hashed["digest"]), same, vectors, max_distance, min_cosine
        )
        entries = (store.entries(ids[group].tolist()) for group in groups)
        return [Group(sorted(some, key=lambda one: (-one.width * one.height, one.name))) for some in entries]


def group_duplicates(entries: Sequence[Entry], vectors: np.ndarray) -> list[list[int]]:
    """Return groups of near-duplicates among N images in memory as lists of positions, the largest group first.

    Args:
        entries: Entries of the images, N.
        vectors: Unit-length embeddings of the images, N E.
    """
    signatures = unpack_signatures(entries)
    hashes = np.array([entry.phash for entry in entries], np.int64)
    # A drawing that is not from a file has no digest. It gets a unique text instead, so that it equals no other image.
    digests = np.array([entry.digest or f" {place}" for place, entry in enumerate(entries)])
    groups = _group_hashes(
        hashes,
        _first_of_equal(digests),
        lambda one, other: signatures_match(signatures[one], signatures[other]),
        lambda places: vectors[places].astype(np.float32),
        MAX_BITS,
        MIN_COSINE,
    )
    return [group.tolist() for group in groups]


def _group_hashes(
    hashes: np.ndarray,
    parents: np.ndarray,
    same: Callable[[np.ndarray, np.ndarray], np.ndarray],
    vectors: Callable[[np.ndarray], np.ndarray],
    max_distance: int,
    min_cosine: float,
) -> list[np.ndarray]:
    """Return groups of at least two near-duplicates as arrays of positions, the largest group first.

    Args:
        hashes: Perceptual hashes, N.
        parents: Initial groups as a union-find forest: for each position, a position in the same group, N. The array
            is modified.
        same: Function that gets two arrays of positions, and returns for each pair of positions whether the small
            copies of the two images are nearly equal.
        vectors: Function that returns the embeddings of the images at the given positions.
        max_distance, min_cosine: See `duplicate_groups`.
    """
    for batch in _similar_pairs(hashes, parents, max_distance):
        for start in range(0, len(batch), _PAIRS):
            pairs = batch[start : start + _PAIRS]
            pairs = pairs[_roots(parents, pairs[:, 0]) != _roots(parents, pairs[:, 1])]
            # Icons of a set have similar hashes, so an image may be in many pairs. Each embedding is read only once,
            # and embeddings are read in the order of their positions.
            places, rows = np.unique(pairs, return_inverse=True)
            embedded, rows = vectors(places), rows.reshape(pairs.shape)
            cosines = np.concatenate(
                [
                    (embedded[some[:, 0]] * embedded[some[:, 1]]).sum(axis=1)
                    for some in np.array_split(rows, len(rows) // _CHUNK + 1)
                ]
            )
            # Small copies are slow to read, so they are compared only for the few pairs that remain.
            one, other = pairs[cosines >= min_cosine].T
            is_same = same(one, other)
            for place, copy in zip(one[is_same].tolist(), other[is_same].tolist(), strict=True):
                _merge_groups(parents, place, copy)
    roots = _roots(parents, np.arange(len(hashes)))
    order = np.argsort(roots, kind="stable")
    _, starts, sizes = np.unique(roots[order], return_index=True, return_counts=True)
    several = sizes > 1  # as groups, millions of single images would take gigabytes
    bounds = zip(starts[several].tolist(), sizes[several].tolist(), strict=True)
    return sorted((order[start : start + size] for start, size in bounds), key=len, reverse=True)


def _first_of_equal(digests: np.ndarray) -> np.ndarray:
    """Return, for each of N digests, the index of the first digest that is equal to it, N."""
    _, firsts, kinds = np.unique(digests, return_index=True, return_inverse=True)
    return firsts[kinds]


def _similar_pairs(hashes: np.ndarray, parents: np.ndarray, max_bits: int) -> Iterator[np.ndarray]:
    """Yield pairs of images in different groups whose hashes differ in at most `max_bits` bits, as arrays of positions
    of shape P 2.

    The groups are those of the union-find forest `parents`, in which the caller may merge groups between the yielded
    arrays. Of each initial group, only one image is compared. If more than `MAX_BUCKET` images have equal bands, some
    pairs are not found. The hashes are sorted by each combination of `EQUAL_BANDS` bands in turn. Hashes in which these
    bands are equal are then adjacent, and only such hashes are compared. For N random hashes, this takes a few times N
    comparisons, as long as N is not much larger than 2²¹.
    """
    places = np.unique(parents)
    # After the stable sorts below, images with equal keys are still sorted by hash.
    places = places[np.argsort(hashes[places], kind="stable")]
    hashes = hashes[places]
    count = max(BANDS, max_bits + EQUAL_BANDS)
    bands = _bands(hashes, count)
    crowded = np.zeros(len(places), bool)  # images that were not compared with all images that have equal bands
    for chosen in combinations(range(count), EQUAL_BANDS):
        keys = np.zeros(len(places), np.uint32)
        for band in chosen:
            keys = keys << 8 | bands[band]
        order = np.argsort(keys, kind="stable")
        is_crowd = _are_in_large_buckets(keys[order])
        ordered = hashes[order]
        for a, b in _neighbours(keys[order]):
            is_near = num_differing_bits(ordered[a], ordered[b]) <= max_bits
            a, b = a[is_near], b[is_near]
            pairs = np.stack([order[a], order[b]], axis=1)
            may_be_new = crowded[order[a]] & ~is_crowd[a]
            # If another band is also equal, an earlier combination with that band has already yielded the pair.
            for band in set(range(chosen[-1])).difference(chosen):
                kept = may_be_new | (bands[band][pairs[:, 0]] != bands[band][pairs[:, 1]])
                pairs, may_be_new = pairs[kept], may_be_new[kept]
            pairs = places[pairs]
            pairs = pairs[_roots(parents, pairs[:, 0]) != _roots(parents, pairs[:, 1])]
            if len(pairs):
                yield pairs
        crowded[order[is_crowd]] = True


def _bands(hashes: np.ndarray, count: int) -> list[np.ndarray]:
    """Split N 64-bit hashes into disjoint bands of at most eight bits. Return an array of N numbers for each band."""
    ends = [64 * band // count for band in range(count + 1)]
    bits = hashes.view(np.uint64)
    return [
        (bits >> np.uint64(start) & np.uint64(2 ** (end - start) - 1)).astype(np.uint32)
        for start, end in pairwise(ends)
    ]


def _are_in_large_buckets(keys: np.ndarray) -> np.ndarray:
    """Return for each of N sorted keys whether it occurs more than `MAX_BUCKET` times, N."""
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, np.int64)
    sizes = np.diff(starts, append=len(keys))
    return np.repeat(sizes > MAX_BUCKET, sizes)


def _neighbours(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of positions with equal keys in a sorted array, as two arrays that contain many pairs at a time.

    Pairs of adjacent positions come first, then pairs at a distance of two, and so on. Pairs at a distance of
    `MAX_BUCKET` or more are omitted.
    """
    first = np.arange(len(keys))
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for distance in range(1, MAX_BUCKET):
        first = first[: np.searchsorted(first, len(keys) - distance)]
        first = first[keys[first] == keys[first + distance]]
        if len(first):
            waiting.append((first, first + distance))
            count += len(first)
        is_last = not len(first) or distance == MAX_BUCKET - 1
        if waiting and (is_last or count >= _RAW_PAIRS):
            yield np.concatenate([one for one, _ in waiting]), np.concatenate([other for _, other in waiting])
            waiting, count = [], 0
        if not len(first):
            return


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


def _merge_groups(parents: np.ndarray, one: int, other: int) -> None:
    a, b = sorted((_root(parents, one), _root(parents, other)))
    parents[b] = a
