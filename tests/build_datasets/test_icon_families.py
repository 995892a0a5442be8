"""Design families, measured on pictures."""

import numpy as np
from icon_families import FEW, groups, linked
from icon_pairs import has_near


def drawings(count: int, seed: int) -> np.ndarray:
    """Signatures of pictures that differ, each with many edges."""
    return np.random.default_rng(seed).choice(np.array([0, 255], np.uint8), (count, 256))


def test_sets_with_near_identical_pictures_are_linked_and_others_are_not():
    own, others = drawings(100, 0), drawings(100, 1)
    redrawn = np.clip(own[:60].astype(int) + np.random.default_rng(2).integers(-8, 9, (60, 256)), 0, 255)
    links = linked({"a": own, "b": np.concatenate([redrawn.astype(np.uint8), others[:40]]), "c": others[40:]})
    assert {pair: round(share, 2) for pair, share in links.items()} == {("a", "b"): 0.6, ("b", "a"): 0.6}


def test_pictures_that_many_sets_have_link_none():
    common = drawings(50, 0)
    sets = {name: np.concatenate([common, drawings(10, ord(name))]) for name in "abcdefgh"}
    assert linked(sets) == {}
    assert linked({name: sets[name] for name in "ab"}) != {}


def test_plain_pictures_and_small_sets_say_nothing():
    plain = np.repeat(drawings(100, 0)[:, :1], 256, axis=1)
    assert linked({"a": plain, "b": plain}) == {}
    few = drawings(FEW - 1, 0)
    assert linked({"a": few, "b": few}) == {}


def test_near_is_a_root_mean_square():
    one = np.full((1, 256), 100, np.uint8)
    assert has_near(one, one + 3, 3).tolist() == [True]
    assert has_near(one, one + 4, 3).tolist() == [False]
    assert has_near(one, np.zeros((0, 256), np.uint8), 3).tolist() == [False]


def test_groups_hang_together():
    assert groups("dcba", [("a", "c"), ("d", "c")]) == [["a", "c", "d"], ["b"]]
