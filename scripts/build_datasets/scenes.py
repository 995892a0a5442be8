"""The corpus `scenes`: drawings of two shapes whose captions say where one stands from the other.

It is built in the user's cache, in half a minute. Nothing is fetched.

A scene is what its caption says. Pictures of one scene differ in places and sizes, which the caption does not say. The
bytes of a picture depend on its scene and number alone, not on the machine or on any package: places and shapes are
computed in whole numbers, and the PNG is written here, without compression.

Shapes: S = 64 pixels a side.
"""

import hashlib
import itertools
import json
import math
import random
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from cached_corpus import OnProgress, add_file, is_built
from jaxtyping import Bool, Int, UInt8

from grr_coca.common.errors import UserError
from grr_coca.common.files import user_cache, whole_folder

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
    """Two different things, and where the first stands. They are in alphabetical order, so a scene has one caption."""

    first: Thing
    second: Thing
    relation: str

    @property
    def things(self) -> tuple[Thing, Thing]:
        """Both things, without the relation."""
        return self.first, self.second

    @property
    def caption(self) -> str:
        """Such as "a blue square above and left of a red circle"."""
        return f"{self.first} {self.relation} {self.second}"


@dataclass(frozen=True)
class SceneCounts:
    """Size of a corpus: pairs of things in each split, and pictures of each training scene.

    Pairs of things beyond these are left out.
    """

    train: int = 480
    val: int = 50
    test: int = 100
    pictures: int = 4


def split_scenes(counts: SceneCounts) -> dict[str, list[Scene]]:
    """The scenes of each split. All eight scenes of two things are in one split."""
    things = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
    pairs = sorted(combinations(sorted(things), 2), key=lambda pair: _shuffled(*pair))
    splits: dict[str, list[Scene]] = {}
    for split in reversed(SPLITS):  # those that are measured on do not change with the size of training
        count = getattr(counts, split)
        splits[split] = [Scene(*pair, relation) for pair in pairs[:count] for relation in RELATIONS]
        pairs = pairs[count:]
    return {split: splits[split] for split in SPLITS}


def _shuffled(first: Thing, second: Thing) -> bytes:
    """Key of a random order that is the same on every machine."""
    return hashlib.sha256(f"scenes {first} {second}".encode()).digest()


# --- Pictures

SIZE = 64
FINE = 4
"""Parts of a pixel's side. The shade of a pixel at an edge depends on how many of its parts the shape covers."""
LEVELS = 7
"""Shades of a shape from its edge to its inside. Two shapes and white make 15 of the 16 colours of 4 bits."""

RGB = {
    "black": (30, 30, 30),
    "blue": (40, 80, 210),
    "green": (30, 150, 60),
    "purple": (140, 50, 170),
    "red": (215, 45, 40),
    "yellow": (235, 195, 20),
}

HALF_SIDES = (24, 36)
"""Half of a shape's side: the smallest and the largest, in parts of a pixel."""
ALONG, ASIDE = (76, 128), (-12, 12)
"""Range of distances of two things beside or above each other, along that line and across it, in parts of a pixel."""
SLANTED = (72, 104)
"""Range of distances of two things on a diagonal, along each axis. No two shapes touch."""

Drawn = tuple[int, int, int]
"""Middle and half side of a shape, in parts of a pixel: right, down, half side."""


def draw_scene(scene: Scene, number: int) -> bytes:
    """A picture of a scene as PNG. Pictures of other numbers have other places and sizes."""
    chance = random.Random(f"{scene.caption} {number}")
    cover = [shape_cover(thing.shape, drawn) for thing, drawn in zip(scene.things, _placed(scene, chance), strict=True)]
    pixels = np.where(cover[1] > 0, cover[1] + LEVELS, cover[0])
    palette = [(255, 255, 255), *_shades(scene.first.colour), *_shades(scene.second.colour)]
    return _png(pixels.astype(np.uint8), palette)


def shape_cover(shape: str, drawn: Drawn) -> Int[np.ndarray, "S S"]:
    """How much of each pixel a shape covers, from 0 to `LEVELS`."""
    right, down, half = drawn
    # Twice the distance of each part's middle from the shape's, so that halves are whole numbers.
    parts = 2 * np.arange(SIZE * FINE) + 1
    inside = _inside(shape, (parts - 2 * right)[None, :], (parts - 2 * down)[:, None], 2 * half)
    covered = inside.reshape(SIZE, FINE, SIZE, FINE).sum(axis=(1, 3), dtype=np.int64)
    return (covered * LEVELS + FINE * FINE // 2) // (FINE * FINE)


def _placed(scene: Scene, chance: random.Random) -> tuple[Drawn, Drawn]:
    """Draw a distance that fits the relation, then a place at which both things lie within the picture."""
    steps = RELATIONS[scene.relation]
    away = [_distance(step, is_slanted=all(steps), chance=chance) for step in steps]
    halves = [_between(HALF_SIDES, chance) for _ in scene.things]
    middles = []
    for offset in away:
        # The first stands at 0 and the second at −offset, before both are moved into the picture together.
        low = min(-halves[0], -offset - halves[1])
        high = max(halves[0], -offset + halves[1])
        first = _between((-low, SIZE * FINE - high), chance)
        middles.append((first, first - offset))
    (right, other_right), (down, other_down) = middles
    return (right, down, halves[0]), (other_right, other_down, halves[1])


def _distance(step: int, *, is_slanted: bool, chance: random.Random) -> int:
    if step == 0:
        return _between(ASIDE, chance)
    return step * _between(SLANTED if is_slanted else ALONG, chance)


def _between(ends: tuple[int, int], chance: random.Random) -> int:
    """A random whole number; both ends are possible."""
    # Only `random()` gives the same numbers in every version of Python.
    low, high = ends
    return low + int(chance.random() * (high - low + 1))


def _inside(shape: str, x: Int[np.ndarray, "1 X"], y: Int[np.ndarray, "Y 1"], half: int) -> Bool[np.ndarray, "Y X"]:
    """True for the points inside a shape around 0."""
    in_box = (abs(x) <= half) & (abs(y) <= half)
    match shape:
        case "circle":
            return x * x + y * y <= half * half
        case "cross":
            return in_box & ((3 * abs(x) <= half) | (3 * abs(y) <= half))
        case "diamond":
            return abs(x) + abs(y) <= half
        case "ring":
            distance = x * x + y * y
            return (distance <= half * half) & (4 * distance >= half * half)
        case "square":
            return in_box
        case _:
            return in_box & (2 * abs(x) <= half + y)  # a triangle that stands on its side


def _shades(colour: str) -> list[tuple[int, ...]]:
    """The shades of a colour over white, from the faintest to the colour itself."""
    return [tuple(255 - (255 - c) * level // LEVELS for c in RGB[colour]) for level in range(1, LEVELS + 1)]


def _png(pixels: UInt8[np.ndarray, "S S"], palette: list[tuple[int, ...]]) -> bytes:
    """A PNG of 4 bits a pixel, not compressed: versions of packages compress differently."""
    packed = pixels[:, ::2] << 4 | pixels[:, 1::2]
    lines = b"".join(b"\0" + line.tobytes() for line in packed)
    length = struct.pack("<HH", len(lines), len(lines) ^ 0xFFFF)
    stored = b"\x78\x01\x01" + length + lines + struct.pack(">I", zlib.adler32(lines))
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", SIZE, SIZE, 4, 3, 0, 0, 0),
        b"PLTE": bytes(channel for colour in palette for channel in colour),
        b"IDAT": stored,
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks, chunks.values()))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


# --- The corpus

NAME = "scenes"

PUBLISHED = "e5b4ff37fff234581b58c5402a852bbabdc4cd9280e04ab757ff70b1b20d55ed"
"""The sha256 of the corpus's `card.json`, which has those of all shards."""

DRAWN_WITH: Mapping[str, str] = {}
"""No package decides the pictures' bytes."""

PAIRS_PER_SHARD = 4_000

ALL = SceneCounts()
"""Size of the published corpus; tests build a smaller one."""

STAGES = {"drawings": 16_560}
"""Number of steps of each stage: pictures."""

Picture = tuple[Scene, int]
"""A scene, and the number of one of its pictures."""


def build(on_progress: OnProgress, folder: Path | None = None, counts: SceneCounts = ALL) -> Path:
    """Draw and write the corpus; returns its folder.

    Args:
        on_progress: called with the stage and the number of its steps that are done.
        folder: a new folder; None: `scenes` in the user's cache.
        counts: how many scenes and pictures there are.

    Raises:
        UserError: the folder holds something else, or cannot be written to.
    """
    folder = folder or user_cache() / NAME
    if is_built(folder, NAME):
        return folder
    try:
        with whole_folder(folder) as partial:
            splits, scenes = {}, split_scenes(counts)
            done = itertools.count(1)
            for split in scenes:
                pictures = _pictures(scenes[split], split, counts)
                shards = _write_shards(partial, split, pictures, lambda: on_progress("drawings", next(done)))
                splits[split] = {"count": len(pictures), "shards": shards}
            _write_cards(partial, splits, scenes)
    except OSError as error:
        raise UserError(f"{folder}: cannot be built ({error.strerror or error})") from error
    return folder


def _pictures(scenes: Iterable[Scene], split: str, counts: SceneCounts) -> list[Picture]:
    """The pictures of a split. Training: several of each scene, in a fixed shuffle. Otherwise one of each, in order."""
    if split != "train":
        return [(scene, 0) for scene in scenes]
    pictures = [(scene, number) for scene in scenes for number in range(counts.pictures)]
    return sorted(pictures, key=lambda picture: hashlib.sha256(f"{picture[0].caption} {picture[1]}".encode()).digest())


def _write_shards(folder: Path, split: str, pictures: list[Picture], on_picture: Callable[[], None]) -> dict[str, str]:
    """Write `SPLIT-00000.tar` …; returns the sha256 of each by its name."""
    shards = {}
    for number, start in enumerate(range(0, len(pictures), PAIRS_PER_SHARD)):
        path = folder / f"{split}-{number:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for index, (scene, picture) in enumerate(pictures[start : start + PAIRS_PER_SHARD], start):
                add_file(tar, f"{split}-{index:05d}.png", draw_scene(scene, picture))
                add_file(tar, f"{split}-{index:05d}.txt", scene.caption.encode())
                on_picture()
        shards[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return shards


# --- Cards

ABOUT = (
    "Drawings of two shapes on white, 64 × 64 pixels, with captions that say where one stands from the other: "
    '"a blue square above and left of a red circle". Sizes, distances and the place of both in the picture are random. '
    "Made to see whether a model knows where things stand: nothing else tells the scenes of the same two things apart."
)

SPLIT_RULE = (
    "No two things are together in more than one split, so no caption and no picture is either. The thing that comes "
    "first in the alphabet is named first: a scene has one caption. `val` and `test` have one picture of each scene."
)

BATCH = 128
"""Batch size at which the smallest contrastive loss is computed, that of `studies/position`."""


def _write_cards(folder: Path, splits: Mapping[str, Mapping], scenes: Mapping[str, Sequence[Scene]]) -> None:
    """Write both cards.

    Args:
        folder: the corpus.
        splits: count and checksums of each split's shards.
        scenes: those of each split.
    """
    without = without_positions(scenes["test"])
    card = {"name": "scenes", "description": ABOUT, "splits": splits, "test_without_positions": without}
    (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "card.md").write_text(_page(splits, scenes, without), encoding="utf-8")


def without_positions(scenes: Sequence[Scene]) -> dict[str, float]:
    """The best results on a split of a model that knows the things of every picture, but not where they stand.

    Returns:
        `captions`: how many there are; `differ_only_in_position`: how many of them have another one that names the same
        things; `chance_R@1`, `best_R@1`; `least_nats_a_caption`; `least_contrastive_loss` in random batches of
        `contrastive_batch` pairs. All scenes of the same things look alike to such a model, so that it has to guess.
    """
    groups = Counter(scene.things for scene in scenes)
    guesses = [math.log(groups[scene.things]) for scene in scenes]
    batch = min(BATCH, len(scenes))
    losses = [_guess_in_batch(groups[scene.things] - 1, len(scenes) - 1, batch - 1) for scene in scenes]
    return {
        "captions": len(scenes),
        "differ_only_in_position": sum(groups[scene.things] > 1 for scene in scenes),
        "chance_R@1": round(1 / len(scenes), 6),
        "best_R@1": round(len(groups) / len(scenes), 6),
        "least_nats_a_caption": round(sum(guesses) / len(scenes), 4),
        "contrastive_batch": batch,
        "least_contrastive_loss": round(sum(losses) / len(scenes), 4),
    }


def _guess_in_batch(alike: int, others: int, drawn: int) -> float:
    """Mean logarithm of the number of pairs in a batch that such a model cannot tell from a given one, itself included.

    Of `others` pairs, `drawn` are in the batch. `alike` of the others look the same, so their number in the batch has
    the hypergeometric distribution.
    """
    ways = math.comb(others, drawn)
    return sum(
        math.comb(alike, found) * math.comb(others - alike, drawn - found) / ways * math.log(1 + found)
        for found in range(min(alike, drawn) + 1)
    )


def _page(splits: Mapping[str, Mapping], scenes: Mapping[str, Sequence[Scene]], without: Mapping[str, float]) -> str:
    batch = without["contrastive_batch"]
    lines = [
        "# Scenes",
        "",
        ABOUT,
        "",
        "## Splits",
        "",
        SPLIT_RULE,
        "",
        "| split | pictures | scenes |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {split['count']:,} | {len(scenes[name]):,} |" for name, split in splits.items()]
    lines += ["", f"{len(COLOURS)} colours × {len(SHAPES)} shapes; where the first stands: {', '.join(RELATIONS)}."]
    lines += ["", "## Without positions", ""]
    lines += [
        f"{without['differ_only_in_position']:,} of the {without['captions']:,} captions of `test` differ from another "
        "one there in nothing but position. Worked out for a model that knows both things of every picture, but not "
        "where they stand:",
        "",
        "| on `test` | chance | at best without positions |",
        "|---|---|---|",
        f"| R@1 | {100 * without['chance_R@1']:.2f} % | {100 * without['best_R@1']:.1f} % |",
        f"| nats a caption | – | {without['least_nats_a_caption']:.3f} |",
        f"| contrastive loss, batches of {batch} | {math.log(batch):.3f} | {without['least_contrastive_loss']:.3f} |",
        "",
        "## Ten captions",
        "",
        *(f"- {scene.caption}" for scene in scenes["train"][:: len(scenes["train"]) // 10 + 1][:10]),
        "",
        "## Known faults",
        "",
        "- Two shapes on white are far from photographs. Whoever tells them apart need not tell anything else apart.",
        "- The place of one thing hints at that of the other: nothing is right of a thing at the right edge.",
        "",
        "Drawn by `scripts/build_datasets/scenes.py`; nothing in it is anybody else's work.",
        "",
    ]
    return "\n".join(lines)
