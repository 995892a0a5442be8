"""Pictures for tests of the search: entries out of nothing, files of plain colours, and a model that tells colours."""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from grr_coca.data.image_files import map_in_background
from grr_coca.data.preprocess import Preprocess
from grr_coca.infer.calibration import CaptionConfidence
from grr_coca_search.describe import DecodedImage, Take, decode_found
from grr_coca_search.entry import Entry, Header, Photo, Stamp
from grr_coca_search.fields import READER_VERSION, FieldValue
from grr_coca_search.portable import export_parquet
from grr_coca_search.store import Changes, ImageDescription, Store

WIDTH = 32
HEADER = Header("pictograms", "f" * 32, WIDTH)
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "grey": (120, 120, 120)}


def make_vectors(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors as an index keeps them: rounded to halves."""
    vectors = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def photo_of(keywords: tuple[str, ...] = (), sidecars: int = READER_VERSION, **fields: FieldValue) -> Photo:
    """What was read of an image."""
    return Photo(fields=fields, keywords=keywords, sidecars=sidecars)


def make_entry(number: int, **changes: object) -> Entry:
    """An entry like no other: folders, widths, captions and columns take turns."""
    folder = ("logos", "icons", "photos")[number % 3]
    values: dict = {
        "name": f"/pictures/{folder}/{number:05}.png",
        "root": "/pictures",
        "file": f"/pictures/{folder}/{number:05}.png",
        "offset": None,
        "stamp": Stamp(1000 + number, (1_700_000_000 + number * 86_400) * 10**9),
        "digest": f"{number:032x}",
        "phash": (number * 0x9E3779B97F4A7C15 & (2**64 - 1)) - 2**63,
        "tags": (folder, f"tag {number % 4}")[: number % 3],
        "pixel_signature": bytes(384),  # equal, so that the hashes decide which images are near-duplicates
        "width": 16 * (number % 10 + 1),
        "height": 64,
        "caption": f"{('red', 'green', 'blue')[number % 3]} thing number{number % 7}",
        "fields": {"price": number % 50, "brand": f"maker {number % 4}"} if number % 2 else {},
    }
    return Entry(**{**values, **changes})


def fill(store: Store, count: int, seed: int = 0, first: int = 0) -> tuple[list[Entry], np.ndarray]:
    """Commit images; returns what was added."""
    entries, vectors = [make_entry(first + number) for number in range(count)], make_vectors(count, seed)
    for start in range(0, count, 500):
        chunk = slice(start, start + 500)
        store.commit(Changes(added=list(zip(entries[chunk], vectors[chunk], strict=True))))
    return entries, vectors


def exported(store: Store, path: Path) -> Path:
    """A file that `export index` writes."""
    export_parquet(store, path)
    return path


class ColourModel:
    """Describes images of plain colours in no time: by the name of the nearest colour, and by its direction."""

    preprocess = Preprocess(8)

    def __init__(self) -> None:
        self.described = 0

    def read(self, found, batch_size: int):
        return map_in_background(found, partial(decode_found, preprocess=self.preprocess), batch_size)

    def describe(self, batches: Iterable[Sequence[DecodedImage]], take: Take) -> None:
        for batch in batches:
            self.described += len(batch)
            take(batch, [self._one(np.asarray(one.square).reshape(-1, 3).mean(axis=0)) for one in batch])

    def _one(self, mean: np.ndarray) -> ImageDescription:
        name = min(COLOURS, key=lambda colour: float(np.abs(mean - COLOURS[colour]).sum()))
        vector = np.zeros(WIDTH, np.float32)
        vector[:3] = mean / np.linalg.norm(mean)
        return ImageDescription(f"a {name} square", vector, CaptionConfidence(0.75, name == "grey"))


def paint(path: Path, colour: str, side: int = 12, seconds: int | None = None) -> Path:
    """An image file of one colour with a mark in a corner that depends on its name, so that no two are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (side, side), COLOURS[colour])
    image.putpixel((0, 0), tuple(sum(path.name.encode()) * k % 256 for k in (1, 7, 13)))
    image.save(path)
    if seconds is not None:
        os.utime(path, (seconds, seconds))
    return path
