"""Design families: sets that draw alike, measured by how many near-identical pictures they share.

Shapes: N icons of a set, M of another.
"""

from collections.abc import Iterable, Mapping

import numpy as np

IDENTICAL = 3
"""As below, up to which two pictures are the same one, drawn again."""

NEAR = 10
"""Root mean square difference of two signatures, of 255, up to which two pictures count as the same drawing."""

SAMPLED = 150
"""Icons of a set that are looked for in the others."""

DETAILED = 85
"""Mean difference of neighbouring cells of a signature, along both axes, below which a picture is too plain to tell
hands apart: any set's plus sign is near-identical to any other's. Four icons of ten are."""

COMMON = 6
"""Sets, its own among them, up to which a picture tells of one hand; what more of them have is a commonplace."""

LINKED = 0.1
"""Share of a set's sampled icons with a near-identical picture in another set from which the two are one family."""

FEW = 40
"""Detailed icons without which a set's share says nothing."""


def linked(signatures: Mapping[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """The pairs of sets that are one family, each with its share of near-identical pictures."""
    enough = {prefix for prefix, all_ in signatures.items() if len(_sample(all_)) >= FEW}
    if not enough:
        return {}
    shared = shared_pictures({prefix: all_ for prefix, all_ in signatures.items() if prefix in enough})
    return {pair: share for pair, share in shared.items() if share >= LINKED}


def groups(prefixes: Iterable[str], links: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Sets that hang together by links, each group in alphabetical order."""
    group_of = {prefix: [prefix] for prefix in sorted(prefixes)}
    for a, b in links:
        if group_of[a] is not group_of[b]:
            joined = sorted(group_of[a] + group_of[b])
            group_of.update(dict.fromkeys(joined, joined))
    return [group for prefix, group in group_of.items() if group[0] == prefix]


def shared_pictures(signatures: Mapping[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """For each ordered pair of sets, the share of the first one's sampled icons that the second one also has.

    Args:
        signatures: of each set, N 256, uint8.
    """
    samples = {prefix: _sample(all_) for prefix, all_ in signatures.items()}
    queries = np.concatenate(list(samples.values()))
    is_near = np.stack([has_near(queries, all_, NEAR) for all_ in signatures.values()], axis=1)  # queries, sets
    is_near &= is_near.sum(axis=1, keepdims=True) <= COMMON
    shared = {}
    ends = np.cumsum([len(sample) for sample in samples.values()])
    for prefix, part in zip(samples, np.split(is_near, ends[:-1]), strict=True):
        for other, share in zip(signatures, part.mean(axis=0), strict=True):
            if prefix != other:
                shared[prefix, other] = float(share)
    return shared


def _sample(signatures: np.ndarray) -> np.ndarray:
    """Detailed icons of a set, evenly spread."""
    squares = signatures.reshape(-1, 16, 16).astype(np.int32)
    edges = np.abs(np.diff(squares, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(squares, axis=2)).mean(axis=(1, 2))
    detailed = signatures[edges >= DETAILED]
    return detailed[:: max(1, -(-len(detailed) // SAMPLED))]


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
