"""How well a model knows icons as people show them: small, as JPEG, with wide margins, off centre, on a button.

    python scripts/icons_shown.py MODEL [--unframed]

takes 400 icons of `tabler`, which training never saw, of the corpus `icons`, and shows them in each way. It prints

- how often the plain icon is nearest, and among the five nearest, of the 2,000 of the split
- R@1 and R@10 from text to picture, among the 400 as they are shown
- how many captions are exactly right

and, over splits that training never saw, as they are in the corpus:

- the last two of drawings whose captions tell a place or a size ("dot", "minus", "badge", "small")
- how often a picture finds one with the same caption in another family, first and among ten, of pairs of families

`--unframed` measures the model without the framing of its
checkpoint.

Shapes: N icons, S image size in pixels, E embedding width.
"""

import argparse
import io
import itertools
import re
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from grr_coca.cli import exit_code
from grr_coca.common.files import expand_cache_prefix
from grr_coca.data.sources.open import open_source
from grr_coca.data.tokenizer import clean_caption
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.infer.load import load, locate_checkpoint
from grr_coca.model.checkpoint_files import read_files

SPLIT = "test_family_tabler"
SHOWN = 400
PLACED = ("test", "test_family_tabler", "test_family_carbon", "test_family_game-icons", "test_family_roentgen", "val")
PLACE_OR_SIZE = re.compile(
    r"\b(dots?|minus|remove|badge|small|tiny|mini|point|period|bullet|corner|subtract|top|bottom|left|right)\b"
)
FAMILIES = ("tabler", "carbon", "game-icons")


# --- Ways to show an icon


def on_canvas(icon: Image.Image, ground: str, times: float, right: float = 0.0, down: float = 0.0) -> Image.Image:
    """On a canvas some times as wide, moved from its middle by shares of the canvas."""
    side = round(icon.width * times)
    canvas = Image.new("RGB", (side, side), ground)
    left, top = ((side - icon.width) // 2 + round(share * side) for share in (right, down))
    canvas.paste(icon, (left, top))
    return canvas


def in_colours(icon: Image.Image, ink: str, ground: str) -> Image.Image:
    """Black and white become two other colours."""
    return ImageOps.colorize(icon.convert("L"), ink, ground)


def of_pixels(icon: Image.Image, side: int) -> Image.Image:
    """Scaled down."""
    return icon.resize((side, side), Image.Resampling.LANCZOS)


def as_jpeg(icon: Image.Image, quality: int) -> Image.Image:
    """With the traces of a JPEG."""
    file = io.BytesIO()
    icon.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def on_button(icon: Image.Image) -> Image.Image:
    """White in a blue disc on white, 0.55 of its diameter."""
    side = round(icon.width / 0.55)
    canvas = Image.new("RGB", (4 * side, 4 * side), "white")
    ImageDraw.Draw(canvas).ellipse((8, 8, 4 * side - 8, 4 * side - 8), fill="#2563eb")
    canvas = canvas.resize((side, side), Image.Resampling.LANCZOS)
    canvas.paste(in_colours(icon, "white", "#2563eb"), ((side - icon.width) // 2,) * 2)
    return canvas


def cropped(icon: Image.Image) -> Image.Image:
    """Without an eighth of each side."""
    away = icon.width // 8
    return icon.crop((away, away, icon.width - away, icon.width - away))


WAYS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as drawn": lambda icon: icon,
    "white on near black": lambda icon: in_colours(icon, "white", "#111827"),
    "blue on pale blue": lambda icon: in_colours(icon, "#1d4ed8", "#dbeafe"),
    "24 px": lambda icon: of_pixels(icon, 24),
    "16 px": lambda icon: of_pixels(icon, 16),
    "24 px, JPEG at 60": lambda icon: as_jpeg(of_pixels(icon, 24), 60),
    "margin 1.2 times": lambda icon: on_canvas(icon, "white", 1.2),
    "margin 1.5 times": lambda icon: on_canvas(icon, "white", 1.5),
    "margin 2 times": lambda icon: on_canvas(icon, "white", 2.0),
    "off centre by an eighth, 1.4 times": lambda icon: on_canvas(icon, "white", 1.4, 0.125, 0.125),
    "grey on dark, 24 px, margin 1.5 times": lambda icon: on_canvas(
        of_pixels(in_colours(icon, "#9ca3af", "#1f2937"), 24), "#1f2937", 1.5
    ),
    "white in a blue disc": on_button,
    "cropped too tight": cropped,
}


# --- Measuring


def read(model: ImageTextModel, pictures: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """What a model makes of pictures: embeddings N E, and captions N."""
    described = model.describe_many(pictures)
    return np.stack([one.embedding for one in described]), np.array([one.captions[0].text for one in described])


def icons_of(model: ImageTextModel, split: str) -> tuple[list[Image.Image], np.ndarray]:
    """Return the pictures of a split, N, and the first caption of each."""
    source = open_source(expand_cache_prefix(f"cache:icons/{split}-*.tar"))
    names = [source.name(number) for number in range(len(source))]
    pictures = [model.preprocess.decode(source[number].image, name) for number, name in enumerate(names)]
    titles = [clean_caption(source.captions(number)[0], name) for number, name in enumerate(names)]
    return pictures, np.array(titles)


def rank(scores: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    """For each row, how many are better than the best right one."""
    best = np.where(is_right, scores, -np.inf).max(axis=1, keepdims=True)
    return (scores > best).sum(axis=1)


def share(flags: np.ndarray) -> str:
    """Return a share in percent."""
    return f"{100 * flags.mean():.1f}"


def measure_ways(model: ImageTextModel) -> None:
    """Print a line for each way to show icons."""
    icons, every_title = icons_of(model, SPLIT)
    plain, _ = read(model, icons)
    shown = np.arange(0, len(icons), len(icons) // SHOWN)
    titles = every_title[shown]
    texts = model.embed_texts(titles.tolist())
    print("| shown | itself first / among five | R@1 / R@10 | exactly right |\n|---|---|---|---|")
    for name, way in WAYS.items():
        embeddings, captions = read(model, [way(icons[number]) for number in shown])
        itself = rank(embeddings @ plain.T, np.arange(len(icons)) == shown[:, None])
        text = rank(texts @ embeddings.T, titles == titles[:, None])
        exact = share(captions == titles)
        cells = [f"{share(itself < 1)} / {share(itself < 5)}", f"{share(text < 1)} / {share(text < 10)}", exact]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def measure_places(model: ImageTextModel) -> None:
    """Print a line for drawings whose captions tell a place or a size."""
    exact, ranks = [], []
    for split in PLACED:
        icons, titles = icons_of(model, split)
        embeddings, captions = read(model, icons)
        told = np.flatnonzero([PLACE_OR_SIZE.search(title) is not None for title in titles])
        texts = model.embed_texts(titles[told].tolist())
        ranks.append(rank(texts @ embeddings.T, titles == titles[told, None]))
        exact.append(captions[told] == titles[told])
    first = np.concatenate(ranks)
    print(
        f"\n{len(first)} drawings of a place or a size: R@1 / R@10 {share(first < 1)} / {share(first < 10)}, "
        f"exactly right {share(np.concatenate(exact))}"
    )


def measure_families(model: ImageTextModel) -> None:
    """Print a line for pictures that find the same thing in another family."""
    embedded = []
    for family in FAMILIES:
        icons, titles = icons_of(model, f"test_family_{family}")
        embedded.append((model.embed_images(icons), titles))
    ranks = []
    for (one, titles), (other, other_titles) in itertools.permutations(embedded, 2):
        both = np.flatnonzero(np.isin(titles, other_titles))
        ranks.append(rank(one[both] @ other.T, titles[both, None] == other_titles))
    first = np.concatenate(ranks)
    print(
        f"{len(first)} pictures find the same thing in another family: R@1 / R@10 {share(first < 1)} / "
        f"{share(first < 10)}; mean over pairs of families "
        f"{np.mean([100 * (pair < 1).mean() for pair in ranks]):.1f} / "
        f"{np.mean([100 * (pair < 10).mean() for pair in ranks]):.1f}"
    )


def main() -> None:
    """Measure a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name or folder")
    parser.add_argument("--unframed", action="store_true", help="without the framing of the checkpoint")
    options = parser.parse_args()
    model = load(options.model)
    if options.unframed:
        files = read_files(locate_checkpoint(options.model))
        unframed = replace(files, preprocess=replace(files.preprocess, framing=None))
        model = ImageTextModel(unframed, model.engine)
    measure_ways(model)
    measure_places(model)
    measure_families(model)


if __name__ == "__main__":
    sys.exit(exit_code(main))
