"""Measure which icon sets draw alike, and write what the corpus `icons` holds out.

    python scripts/build_datasets/icon_families.py WORK

WORK is the folder of drawn sets that an unfinished `python scripts/build_datasets icons` keeps
(`…/grr-coca/icons.work`). It writes `icon_families.json`, groups of sets that draw alike by how many near-identical
pictures they share, and `icon_transfer_tests.npz`, the signatures of all test pictures of `datasets/`, none of which
`icons` may train on.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from icon_drawings import drawn_path, picture_signature, read_drawn
from icon_pairs import FAMILIES, TRANSFER_TESTS, has_near
from icon_sources import Archives, IconSet, kept_sets

from grr_coca.cli import exit_code
from grr_coca.common.files import user_cache
from grr_coca.data.images import decode_image
from grr_coca.data.sources.open import open_source

NEAR = 10
"""Largest root mean square difference of two signatures, of 255, at which two pictures count as near-identical."""

SAMPLED = 150
"""Number of icons of a set that are looked for in the other sets."""

DETAILED = 85
"""Smallest mean difference of neighbouring cells of a signature, summed over both axes, at which a picture counts.
Plainer pictures, four of ten, look alike in all sets: a plus sign does not tell who drew it."""

COMMON = 6
"""Most sets, its own included, that may have a near-identical picture. One that more sets have does not count."""

LINKED = 0.1
"""Two sets are one family if at least this share of one's sampled icons is near-identical to a picture of the other."""

FEW = 40
"""Fewest detailed icons that a set must have for its share to count."""


def linked(signatures: Mapping[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """Pairs of sets that are one family, each with the share of the first one's pictures that the second one has.

    Args:
        signatures: of each set, N 256, uint8.
    """
    enough = {prefix for prefix, all_ in signatures.items() if len(_sample(all_)) >= FEW}
    if not enough:
        return {}
    shared = shared_pictures({prefix: all_ for prefix, all_ in signatures.items() if prefix in enough})
    return {pair: share for pair, share in shared.items() if share >= LINKED}


def groups(prefixes: Iterable[str], links: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Connected groups of sets, each group in alphabetical order.

    Args:
        prefixes: all sets.
        links: pairs of sets that belong together.
    """
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


ROOT = Path(__file__).parents[2]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of the drawn sets")
    parser.add_argument("--archives", type=Path, default=user_cache() / "packages", help="folder of the packages")
    options = parser.parse_args()
    sets = kept_sets(Archives(options.archives).json("iconify", "collections.json"))
    missing = [prefix for prefix in sets if not drawn_path(options.work, prefix).exists()]
    if missing:
        parser.error(f"{options.work}: not drawn yet: {', '.join(missing)}")
    groups = grouped(sets, {prefix: read_drawn(options.work, prefix).signatures for prefix in sets})
    lines = ",\n".join(json.dumps(group) for group in groups)
    FAMILIES.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    signatures = test_signatures()
    np.savez_compressed(TRANSFER_TESTS, signatures=signatures)
    print(f"{len(sets)} sets in {len(groups)} families; {len(signatures)} test pictures")


def grouped(sets: Mapping[str, IconSet], signatures: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Families: sets that share near-identical pictures, or an author.

    Sets of one author may share no picture, if one has outlines and the other filled shapes.
    """
    links = linked(signatures)
    for (a, b), share in sorted(links.items(), key=lambda item: -item[1]):
        print(f"{share:.0%} of {a} is in {b}")
    by_author: dict[str, list[str]] = {}
    for prefix, about in sets.items():
        by_author.setdefault(about.author, []).append(prefix)
    return groups(sets, [*links, *((part[0], other) for part in by_author.values() for other in part[1:])])


def test_signatures() -> np.ndarray:
    """Signatures of the test pictures of all corpora in `datasets/`, N 256, uint8."""
    found = []
    for path in sorted((ROOT / "datasets").glob("*/test*.tar")):
        source = open_source(str(path))
        for index in range(len(source)):
            pair = source[index]
            signature = picture_signature(decode_image(pair.image, pair.name))
            if signature is not None:
                found.append(signature.ravel())
    return np.unique(np.stack(found), axis=0)


if __name__ == "__main__":
    sys.exit(exit_code(main))
