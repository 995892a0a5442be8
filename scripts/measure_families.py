"""Measure which icon sets draw alike, and write what the corpus `icons` holds out, into the package.

    python scripts/measure_families.py WORK

WORK is the folder of drawn sets that an unfinished `grr-coca data fetch icons` keeps (`…/grr-coca/icons.work`). It
writes `families.json`, groups of sets, and `transfer_tests.npz`, the signatures of all test pictures of `datasets/`,
none of which `icons` may train on.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from grr_coca.data.corpus.icons import families
from grr_coca.data.corpus.icons.drawing import picture_signature
from grr_coca.data.corpus.icons.drawn import drawn_path, read_drawn
from grr_coca.data.corpus.icons.packages import Archives
from grr_coca.data.corpus.icons.sets import IconSet, kept_sets
from grr_coca.data.images import decode_image
from grr_coca.data.sources.open import open_source
from grr_coca.files import user_cache

ROOT = Path(__file__).parents[1]
PACKAGE = Path(families.__file__).parent


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
    (PACKAGE / "families.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    signatures = test_signatures()
    np.savez_compressed(PACKAGE / "transfer_tests.npz", signatures=signatures)
    print(f"{len(sets)} sets in {len(groups)} families; {len(signatures)} test pictures")


def grouped(sets: Mapping[str, IconSet], signatures: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Groups of sets that share near-identical pictures, or an author: sets of one hand may share no picture, one
    being in outline and the other filled."""
    links = families.linked(signatures)
    for (a, b), share in sorted(links.items(), key=lambda item: -item[1]):
        print(f"{share:.0%} of {a} is in {b}")
    by_author: dict[str, list[str]] = {}
    for prefix, about in sets.items():
        by_author.setdefault(about.author, []).append(prefix)
    return families.groups(sets, [*links, *((part[0], other) for part in by_author.values() for other in part[1:])])


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
    main()
