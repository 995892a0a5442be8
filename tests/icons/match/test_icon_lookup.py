"""Names of icons as people and code write them, and suggestions for names that do not exist."""

import numpy as np
import pytest

from grr_coca_icons.match.candidates import PictureSet
from grr_coca_icons.match.icon_lookup import IconLookup
from grr_coca_icons.match.picture_set import _logo_names

NAMES = ["tabler:trash", "tabler:brand-github", "tabler:mood-smile", "lucide:trash-2", "lucide:square-arrow-up", "ph:x"]
ALIASES = [(), (), (), ("delete-2",), (), ()]


def pictures(vectors: np.ndarray) -> PictureSet:
    count = len(NAMES)
    return PictureSet(
        names=NAMES,
        words=[()] * count,
        concepts=NAMES,
        vectors=vectors,
        name_vectors=vectors,
        is_seen=np.zeros(count, bool),
        is_filled=np.zeros(count, bool),
    )


@pytest.fixture
def lookup() -> IconLookup:
    """Each icon has an axis of its own; a smile is that of mood-smile, and no other word is known."""
    vectors = np.eye(len(NAMES), dtype=np.float32)
    return IconLookup(pictures(vectors), ALIASES, {"smile": vectors[2], "bin": vectors[0]}.get)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("lucide:trash-2", "lucide:trash-2"),
        ("trash-2", "lucide:trash-2"),
        ("Trash2", "lucide:trash-2"),
        ("lucide:Trash2", "lucide:trash-2"),
        ("lucide:delete-2", "lucide:trash-2"),
        ("IconTrash", "tabler:trash"),
        ("tabler:IconTrash", "tabler:trash"),
        ("PhX", "ph:x"),
        ("trash", "tabler:trash"),
        ("lucide:trash", None),
        ("mdi:trash-2", None),
        ("", None),
    ],
)
def test_icon_is_found_by_each_of_its_names(lookup, written, name):
    row = lookup.find(written)
    assert (None if row is None else NAMES[row]) == name


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("tabler:smile", ["tabler:mood-smile"]),
        ("bin", ["tabler:trash"]),
        ("lucide:bin", ["lucide:trash-2"]),  # the set that is named, though another is closer
        ("lucide:trsah-2", ["lucide:trash-2"]),
        ("lucide:arrow-up-square", ["lucide:square-arrow-up"]),
        ("lucide:unknown-word", []),
        ("x" * 1000, []),
    ],
)
def test_suggestions_rank_by_typing_errors_then_meaning(lookup, written, nearest):
    assert lookup.nearest(written) == nearest


def test_logo_is_also_named_by_its_expansion():
    known = {"x", "brand-x", "brand-github", "github-logo"}
    assert _logo_names("brand-github", known) == ["github"]
    assert _logo_names("github-logo-bold", known) == ["github"]
    assert _logo_names("brand-x", known) == []
    assert _logo_names("branded", known) == []
