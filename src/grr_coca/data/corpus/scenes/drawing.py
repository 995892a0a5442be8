"""A scene as a picture: 64 × 64 pixels, two shapes on white, as PNG.

The bytes depend on the arguments alone, not on the machine or on any package: places and shapes are worked out in whole
numbers, and the PNG is written here, without compression.

Shapes: S = 64 pixels a side.
"""

import random
import struct
import zlib

import numpy as np
from jaxtyping import Bool, Int, UInt8

from grr_coca.data.corpus.scenes.scene import RELATIONS, Scene

SIZE = 64
FINE = 4
"""Parts of a pixel's side: a pixel at an edge is drawn by how many of its parts the shape covers."""
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
"""From thing to thing where they stand beside or over each other: along that line, and across it."""
SLANTED = (72, 104)
"""From thing to thing where they stand aslant: to the side, and down. No two shapes touch."""

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
    """How much of each pixel of a picture a shape covers, from 0 to `LEVELS`."""
    right, down, half = drawn
    # Twice the distance of each part's middle from the shape's, so that halves are whole numbers.
    parts = 2 * np.arange(SIZE * FINE) + 1
    inside = _inside(shape, (parts - 2 * right)[None, :], (parts - 2 * down)[:, None], 2 * half)
    covered = inside.reshape(SIZE, FINE, SIZE, FINE).sum(axis=(1, 3), dtype=np.int64)
    return (covered * LEVELS + FINE * FINE // 2) // (FINE * FINE)


def _placed(scene: Scene, chance: random.Random) -> tuple[Drawn, Drawn]:
    """Where both things stand: a distance that fits the relation, and then any place at which both are whole."""
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
    """A whole number, both ends with it. `random()` alone gives the same numbers in every version of Python."""
    low, high = ends
    return low + int(chance.random() * (high - low + 1))


def _inside(shape: str, x: Int[np.ndarray, "1 X"], y: Int[np.ndarray, "Y 1"], half: int) -> Bool[np.ndarray, "Y X"]:
    """Which points lie in a shape around 0."""
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
    """A colour over white, from its faintest shade to itself."""
    return [tuple(255 - (255 - c) * level // LEVELS for c in RGB[colour]) for level in range(1, LEVELS + 1)]


def _png(pixels: UInt8[np.ndarray, "S S"], palette: list[tuple[int, ...]]) -> bytes:
    """A PNG of 4 bits a pixel, whose data are stored as they are: packages compress differently, version by version."""
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
