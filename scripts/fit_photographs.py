"""Fit the numbers by which a model that ships knows photographs, and measure them.

    python scripts/fit_photographs.py NAME [--photographs DIR]

writes `photographs.json` (see `grr_coca.infer.calibration`) into `src/grr_coca/model/weights/NAME/`, and prints how
many images look like photographs. The numbers depend on what the model's preprocessing makes of images, and not on its
weights. `scripts/fit_confidence.py` then measures them with its own, for the card.

Photographs are those of the first list in `scripts/photographs.txt`, whole and cut out by the outlines of drawings.
Drawings are those of training, the sets in `scripts/cards/NAME.yaml`, and drawings of training that were given
gradients, bevels, highlights and shadows. Both are shown in many sizes and on many grounds, with and without JPEG:
otherwise, what is learned is whether an image was scaled down.

The limit is such that, of the sets that are left out of the fit in turn, `WRONG` look like photographs, each set
counted once.

Shapes: N images, S image size in pixels, F numbers of the inside.
"""

import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from scipy import ndimage

from fit_confidence import ROOT, listed_photographs
from fitting import card_text, folder_of, logistic, parser_of
from grr_coca.cli import exit_code
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import edit_folder_atomic, expand_cache_prefix, user_cache
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.base import BadSample
from grr_coca.data.sources.open import open_source
from grr_coca.infer.calibration import Photographs, compute_interior_stats
from grr_coca.infer.load import load
from grr_coca.model.checkpoint_files import PHOTOGRAPHS
from grr_coca_icons.sources.iconify import read_package

T = TypeVar("T")

WRONG = 0.035
RIDGE = 3.0
NUM_CUT, NUM_PARTS, NUM_MEASURED = 2400, 12, 500
"""Cut-outs of the fit, parts of each photograph, and cut-outs that are measured."""
MAX_SIDE = 640
SIDES, SMALL_SIDES = (40, 512), (16, 64)
"""Ranges of the longer side of what is shown, in pixels; of drawings that are stored in 64 pixels."""
FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.BOX)
DRAWN = (128, 256, 512)
"""Sides, in pixels, in which SVG files are drawn."""


def main() -> None:
    """Fit a bundled model."""
    parser = parser_of(__doc__)
    parser.add_argument("--photographs", type=Path, metavar="DIR", help="folder with the photographs")
    options = parser.parse_args()
    folder, text = folder_of(options.name), card_text(options.name)
    if "photographs" not in text:
        raise UserError(f"{options.name}: its card names no drawings for a fit of photographs")
    named = text["photographs"]
    to_fit, others, _ = listed_photographs(options.photographs or user_cache() / "photographs").values()
    pictures = Pictures(load(folder, engine="onnx").preprocess)

    photographs = [opened(path) for path in to_fit]
    positive = [inside(pictures.cut_out(photographs, named["outlines"], NUM_CUT)), inside(pictures.parts(photographs))]
    negative = [inside(pixels) for path, number in named["training"].items() for pixels in pictures.views(path, number)]
    sets = {path: inside(pictures.of_set(path, number)) for path, number in named["sets"].items()}
    left_out = {}
    for path, found in sets.items():
        weights, offset = fit(positive, [*negative, *(other for name, other in sets.items() if name != path)])
        left_out[path] = found @ weights + offset
    of_all = {path: len(found) for path, found in left_out.items()}
    limit = limit_of(list(left_out.values()))
    weights, offset = fit(positive, [*negative, *sets.values()])
    counts = sum(map(len, positive)), sum(map(len, (*negative, *sets.values())))
    fitted = Photographs(
        weights=tuple(weights.tolist()),
        offset=offset - limit,
        fitted_on=f"{counts[0]:,} views of {len(photographs)} photographs, {counts[1]:,} drawings",
    )
    with edit_folder_atomic(folder) as partial:
        (partial / PHOTOGRAPHS).write_text(json.dumps(to_dict(fitted)) + "\n", encoding="utf-8")
    print("look like photographs:")
    for path, found in left_out.items():
        print(f"  {path}, left out: {np.mean(found > limit):.1%} of {of_all[path]} with an inside")
    cut = pictures.cut_out([opened(path) for path in others], named["unseen_outlines"], NUM_MEASURED)
    print(f"  photographs, other, cut out: {np.mean(fitted.scores(cut) > 0):.1%} of {len(cut)}")
    for path, number in named["unseen"].items():
        drawn = pictures.of_set(path, number)
        print(f"  {path}: {np.mean(fitted.scores(drawn) > 0):.1%} of {len(drawn)}")


# --- The fit


def inside(pixels: np.ndarray) -> np.ndarray:
    """Return the numbers of the inside of N images; of those that are judged."""
    return np.concatenate(
        [compute_interior_stats(pixels[start : start + 64]).numbers for start in range(0, len(pixels), 64)]
    )


def fit(positive: Sequence[np.ndarray], negative: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """Weights and offset of a logistic curve, with a ridge on standardized numbers."""
    numbers = np.concatenate([*positive, *negative])
    truths = np.arange(len(numbers)) < sum(map(len, positive))
    mean, spread = numbers.mean(axis=0), numbers.std(axis=0) + 1e-9
    inputs = np.column_stack([(numbers - mean) / spread, np.ones(len(numbers))])
    found = logistic(inputs, truths, ridge=np.append(np.full(len(mean), RIDGE), 1e-6))
    weights = found[:-1] / spread
    return weights, float(found[-1] - mean @ weights)


def limit_of(scores: Sequence[np.ndarray]) -> float:
    """Return the lowest limit above which `WRONG` of the scores lie, in the mean over the sets."""
    limits = np.linspace(-4, 8, 1201)
    return next(float(one) for one in limits if np.mean([np.mean(found > one) for found in scores]) <= WRONG)


# --- Pictures


class Pictures:
    """Photographs and drawings as a model sees them, N S S 3, shown in random ways."""

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess
        self._rng = np.random.default_rng(0)

    def parts(self, photographs: Sequence[Image.Image]) -> np.ndarray:
        """Photographs, and square parts of them."""
        shown = [self._shown(self._part(one), ground=(255,) * 3) for one in photographs for _ in range(NUM_PARTS)]
        return np.stack(shown + [self._preprocess(one) for one in photographs])

    def cut_out(self, photographs: Sequence[Image.Image], outlines_of: dict[str, int], count: int) -> np.ndarray:
        """Parts of photographs, cut out by the outlines of drawings."""
        found = [outline(one) for path, number in outlines_of.items() for one in self._drawings(path, number)]
        outlines = [one for one in found if one.getbbox() and np.mean(one) > 30]
        return np.stack(
            [
                self._shown(self._cut_by(photographs[one % len(photographs)], self._any(outlines)))
                for one in range(count)
            ]
        )

    def views(self, path: str, number: int) -> Iterable[np.ndarray]:
        """Drawings of training as they are; every third of them in other sizes; every third as if it were glossy."""
        drawn = self._drawings(path, number)
        yield np.stack([self._preprocess(one) for one in drawn])
        yield np.stack([self._shown(cut_free(one), SMALL_SIDES) for one in drawn[::3]])
        yield np.stack([self._shown(self._glossy(cut_free(one)), (40, 192)) for one in drawn[1::3]])

    def of_set(self, path: str, number: int) -> np.ndarray:
        """Drawings of a set. Of SVG files, half are shown in other sizes and on other grounds."""
        drawn = self._drawings(path, number)
        is_svg = drawn[0].width > self._preprocess.image_size
        return np.stack(
            [
                self._shown(cut_free(one)) if is_svg and number % 2 else self._preprocess(one)
                for number, one in enumerate(drawn)
            ]
        )

    def _drawings(self, path: str, number: int) -> list[Image.Image]:
        """Drawings that are spread over a source, or over a set of Iconify; at most this many."""
        if path.startswith("iconify:"):
            icons = [icon.svg for icon in read_package(path).icons if icon.svg]
            return [one for svg in _spread(icons, number) for one in self._drawn(svg.encode())]
        source = open_source(expand_cache_prefix(path) if path.startswith("cache:") else str(ROOT / path))
        pairs = [source[one] for one in _spread(range(len(source)), number)]
        return [self._preprocess.decode(pair.image, pair.name) for pair in pairs]

    def _drawn(self, svg: bytes) -> list[Image.Image]:
        try:
            return [Preprocess(self._any(DRAWN) // 2).decode(svg, "icon.svg")]
        except BadSample:
            return []

    def _shown(
        self, image: Image.Image, sides: tuple[int, int] = SIDES, ground: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """What the model sees of an image with transparency, in a random size, on a ground, perhaps as JPEG."""
        rng = self._rng
        scale = float(np.exp(rng.uniform(*np.log(sides)))) / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.convert("RGBA").resize(size, self._any(FILTERS))
        grounds = ((255,) * 3, tuple(rng.integers(200, 256, 3).tolist()), tuple(rng.integers(0, 60, 3).tolist()))
        on_ground = Image.new("RGB", size, ground or grounds[rng.choice(3, p=(0.7, 0.2, 0.1))])
        on_ground.paste(image, (0, 0), image)
        if rng.random() < 0.3:
            data = io.BytesIO()
            on_ground.save(data, "JPEG", quality=int(rng.integers(40, 96)))
            on_ground = Image.open(data).convert("RGB")
        return self._preprocess(on_ground)

    def _part(self, photograph: Image.Image) -> Image.Image:
        side = int(min(photograph.size) * np.exp(self._rng.uniform(np.log(0.3), 0)))
        return self._cropped(photograph, (side, side))

    def _cropped(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        left, top = (int(self._rng.integers(0, of - part + 1)) for of, part in zip(image.size, size, strict=True))
        return image.crop((left, top, left + size[0], top + size[1]))

    def _cut_by(self, photograph: Image.Image, outline: Image.Image) -> Image.Image:
        cut = outline.crop(outline.getbbox())
        cut = cut.resize((max(8, int(cut.width * self._rng.uniform(0.75, 1.33))), cut.height))
        share = np.exp(self._rng.uniform(np.log(0.2), 0))
        scale = share * min(photograph.width / cut.width, photograph.height / cut.height)
        part = self._cropped(photograph, (max(4, int(cut.width * scale)), max(4, int(cut.height * scale))))
        part = part.resize(cut.size, Image.Resampling.BICUBIC)
        part.putalpha(cut)
        return part

    def _glossy(self, drawing: Image.Image) -> Image.Image:
        """Return a drawing with a gradient; with a bevel, a highlight, a glance and a shadow at random."""
        rng, side = self._rng, 192
        pixels = np.asarray(drawing.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        colours, alpha = pixels[..., :3], pixels[..., 3] / 255
        down, across = np.mgrid[:side, :side] / side - 0.5
        angle = rng.uniform(0, 2 * np.pi)
        light = across * np.cos(angle) + down * np.sin(angle)
        shade = rng.uniform(-60, 90) * np.maximum(light, 0)
        if rng.random() < 0.6:
            depth = ndimage.distance_transform_edt(alpha > 0.5).clip(0, rng.uniform(4, 30))
            slope = np.gradient(ndimage.gaussian_filter(depth, rng.uniform(1, 4)))
            shade += rng.uniform(10, 70) * (slope[1] * np.cos(angle) + slope[0] * np.sin(angle))
        if rng.random() < 0.5:
            (x, y), radius = rng.uniform(-0.3, 0.3, 2), rng.uniform(0.15, 0.5)
            shade += rng.uniform(20, 120) * np.exp(-((across - x) ** 2 + (down - y) ** 2) / radius**2)
        if rng.random() < 0.3:
            shade += rng.uniform(10, 60) * (down + rng.uniform(-0.2, 0.2) + 0.2 * np.sin(3 * across) < 0)
        colours = (colours * (1 + rng.uniform(-0.7, 0.7) * light[..., None]) + shade[..., None]).clip(0, 255)
        if rng.random() < 0.5:
            moved = np.roll(alpha, rng.integers(-6, 10, 2), (0, 1))
            shadow = ndimage.gaussian_filter(moved, rng.uniform(2, 8)) * rng.uniform(0.2, 0.7)
            both = alpha + shadow * (1 - alpha)
            colours, alpha = colours * (alpha / np.maximum(both, 1e-3))[..., None], both
        return Image.fromarray(np.dstack([colours, 255 * alpha]).clip(0, 255).astype(np.uint8), "RGBA")

    def _any(self, of: Sequence[T]) -> T:
        return of[self._rng.integers(len(of))]


def opened(path: Path) -> Image.Image:
    """Return a photograph, scaled down to `MAX_SIDE` pixels."""
    with Image.open(path) as image:
        image.draft("RGB", (MAX_SIDE, MAX_SIDE))
        found = image.convert("RGB")
    found.thumbnail((MAX_SIDE, MAX_SIDE))
    return found


def outline(drawing: Image.Image) -> Image.Image:
    """Return the area of a drawing on white, with its holes filled, in 256 pixels."""
    pixels = np.asarray(drawing.resize((256, 256)), int)
    return Image.fromarray((ndimage.binary_fill_holes((255 - pixels).max(axis=-1) > 30) * 255).astype(np.uint8))


def cut_free(drawing: Image.Image) -> Image.Image:
    """Return a drawing with transparency in place of the white that reaches the border."""
    pixels = np.asarray(drawing.convert("RGB"))
    parts, _ = ndimage.label(pixels.min(axis=-1) > 250)
    outer = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    is_ground = np.isin(parts, outer[outer > 0])
    return Image.fromarray(np.dstack([pixels, np.where(is_ground, 0, 255).astype(np.uint8)]))


def _spread(of: Sequence[T], number: int) -> list[T]:
    count = min(number, len(of))
    return [of[one * len(of) // count] for one in range(count)]


if __name__ == "__main__":
    sys.exit(exit_code(main))
