"""What the scenes are: two things, where the first stands from the second, and the split of each.

A scene is what its caption tells. Its pictures differ in places and sizes, which no caption tells.
"""

import hashlib
from dataclasses import dataclass
from itertools import combinations

COLOURS = ("black", "blue", "green", "purple", "red", "yellow")
SHAPES = ("circle", "cross", "diamond", "ring", "square", "triangle")

RELATIONS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
    "above and left of": (-1, -1),
    "above and right of": (1, -1),
    "below and left of": (-1, 1),
    "below and right of": (1, 1),
}
"""Where the first thing stands from the second: by words, the step to the right and the step down."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, order=True)
class Thing:
    """A shape in a colour."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Two different things, the first in the alphabet first, so that each scene has one caption alone."""

    first: Thing
    second: Thing
    relation: str

    @property
    def things(self) -> tuple[Thing, Thing]:
        """Both, without where they stand."""
        return self.first, self.second

    @property
    def caption(self) -> str:
        """Such as "a blue square above and left of a red circle"."""
        return f"{self.first} {self.relation} {self.second}"


@dataclass(frozen=True)
class SceneCounts:
    """How large a corpus is: pairs of things in each split, and pictures of each training scene. Pairs that are in no
    split are left out."""

    train: int = 480
    val: int = 50
    test: int = 100
    pictures: int = 4


def split_scenes(counts: SceneCounts) -> dict[str, list[Scene]]:
    """The scenes of each split: all eight of two things, which are together in no other split."""
    things = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
    pairs = sorted(combinations(sorted(things), 2), key=lambda pair: _shuffled(*pair))
    splits: dict[str, list[Scene]] = {}
    for split in reversed(SPLITS):  # those that are measured on do not change with the size of training
        count = getattr(counts, split)
        splits[split] = [Scene(*pair, relation) for pair in pairs[:count] for relation in RELATIONS]
        pairs = pairs[count:]
    return {split: splits[split] for split in SPLITS}


def _shuffled(first: Thing, second: Thing) -> bytes:
    """A place in an order that is the same everywhere, and by chance."""
    return hashlib.sha256(f"scenes {first} {second}".encode()).digest()
