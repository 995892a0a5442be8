"""Draw what a model finds among icons of families that it never saw, and what it calls them, for the page on icons.

    python scripts/icon_pictures.py MODEL OUT

writes `icons-found.webp`, `icons-missed.webp`, `icons-captions.webp` and `search.webp` to the folder OUT. The queries
of the first two were written down before any result was seen. The captioned pictures are drawn by hash. The queries of
`search.webp`, which the README shows, were chosen because they go well.
"""

import argparse
import hashlib
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from grr_coca import load
from grr_coca.cli import exit_code
from grr_coca.common.files import expand_cache_prefix
from grr_coca.data.dataset_stats import Font, label_font
from grr_coca.infer.image_text_model import ImageTextModel
from icon_search import Icon, read_icons

FAMILIES = ("tabler", "carbon", "game-icons", "roentgen", "flat-color-icons", "pixel")
THINGS = ("shopping cart", "umbrella", "fish", "bicycle", "castle", "skull", "scissors", "rain cloud")
HARD = ("infinity", "letter k", "three people", "arrow left", "arrow right", "number 5", "freedom", "half full battery")
CHOSEN = ("shopping cart", "alarm clock", "bicycle", "coffee")
HITS = 8
CAPTIONED = ("tabler", "carbon", "game-icons")
CAPTIONED_EACH = 16
SIDE, MARGIN, LINE_HEIGHT, LETTERS_A_LINE = 80, 8, 14, 14
MAX_LINES = 4
CELL = (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN + MAX_LINES * LINE_HEIGHT)
RIGHT, WRONG, PLAIN, CAPTION = "darkgreen", "firebrick", "black", "dimgrey"

Drawn = tuple[Icon, Sequence[tuple[str, str]]]
"""A picture, and the lines below it with their colours."""


def main() -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name or a folder")
    parser.add_argument("out", type=Path, help="folder of the pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = load(options.model)
    icons = {family: read_icons(expand_cache_prefix(f"cache:icons/test_family_{family}-*.tar")) for family in FAMILIES}
    library = [icon for family in FAMILIES for icon in icons[family]]
    vectors = model.embed_images([icon.image for icon in library])
    for name, queries in (("found", THINGS), ("missed", HARD)):
        best = (model.embed_texts(list(queries)) @ vectors.T).argsort(axis=1)[:, : -HITS - 1 : -1].tolist()
        rows = [[hit(library[number], query) for number in row] for query, row in zip(queries, best, strict=True)]
        save(sheet(rows, queries), options.out / f"icons-{name}.webp")
    save(chosen_searches(model, library, vectors), options.out / "search.webp")
    shown = [icon for family in CAPTIONED for icon in by_hash(icons[family], family)[:CAPTIONED_EACH]]
    said = model.caption([icon.image for icon in shown])
    cells = [captioned(icon, str(caption)) for icon, caption in zip(shown, said, strict=True)]
    rows = [cells[first : first + HITS] for first in range(0, len(cells), HITS)]
    titles = [family for family in CAPTIONED for _ in range(CAPTIONED_EACH // HITS)]
    save(sheet(rows, titles), options.out / "icons-captions.webp")


def chosen_searches(model: ImageTextModel, library: Sequence[Icon], vectors: np.ndarray) -> Image.Image:
    """Return the best hits for the chosen queries, each with the model's own caption of it."""
    best = (model.embed_texts(list(CHOSEN)) @ vectors.T).argsort(axis=1)[:, : -HITS - 1 : -1].tolist()
    pictures = [[library[number].image for number in row] for row in best]
    captions = [model.caption(row) for row in pictures]
    font, side, top = label_font(), 64, 12
    left, width, height = 130, 92, side + 34
    page = Image.new("RGB", (left + HITS * width, len(CHOSEN) * height + top), "white")
    draw = ImageDraw.Draw(page)
    for row, query in enumerate(CHOSEN):
        y = top + row * height
        draw.text((MARGIN, y + side // 2), f"\u201c{query}\u201d", PLAIN, font.font_variant(size=14), anchor="lm")
        for column, (picture, caption) in enumerate(zip(pictures[row], captions[row], strict=True)):
            middle = left + column * width + width // 2
            page.paste(picture, (middle - side // 2, y))
            text = textwrap.shorten(str(caption), LETTERS_A_LINE + 3, placeholder=" …")
            draw.text((middle, y + side + 4), text, CAPTION, font, anchor="ma")
    return page


def by_hash(icons: list[Icon], family: str) -> list[Icon]:
    """Icons in an order that has nothing to do with what they show."""
    return sorted(icons, key=lambda icon: hashlib.sha256(f"{family}/{icon.name}".encode()).digest())


def hit(icon: Icon, query: str) -> Drawn:
    """Return a hit, with its name: green if that has a word of the query."""
    return icon, [(icon.name, RIGHT if set(icon.name.split()) & set(query.split()) else PLAIN)]


def captioned(icon: Icon, caption: str) -> Drawn:
    """Return a picture with the model's caption, and its name where the caption is another one."""
    if caption == icon.name:
        return icon, [(caption, RIGHT)]
    return icon, [(caption, WRONG), (icon.name, PLAIN)]


def sheet(rows: Sequence[Sequence[Drawn]], titles: Sequence[str]) -> Image.Image:
    """Rows of pictures, each with its title at the left."""
    font, left = label_font(), 2 * CELL[0] * 2 // 3
    page = Image.new("RGB", (left + HITS * CELL[0], len(rows) * CELL[1]), "white")
    for row, (cells, title) in enumerate(zip(rows, titles, strict=True)):
        top = row * CELL[1]
        ImageDraw.Draw(page).text((MARGIN, top + MARGIN + SIDE // 2), title, PLAIN, font, anchor="lm")
        for column, drawn in enumerate(cells):
            page.paste(cell(drawn, font), (left + column * CELL[0], top))
    return page


def cell(drawn: Drawn, font: Font) -> Image.Image:
    """Return a picture with the lines below it."""
    icon, lines = drawn
    page = Image.new("RGB", CELL, "white")
    page.paste(ImageOps.contain(icon.image, (SIDE, SIDE)), (MARGIN, MARGIN))
    draw = ImageDraw.Draw(page)
    broken = [(part, colour) for text, colour in lines for part in broken_in(text)]
    for number, (part, colour) in enumerate(broken):
        draw.text((MARGIN, SIDE + MARGIN + 2 + number * LINE_HEIGHT), part, colour, font)
    return page


def broken_in(text: str) -> list[str]:
    """Return a text in lines that fit below a picture."""
    return textwrap.wrap(text, LETTERS_A_LINE, max_lines=MAX_LINES // 2, placeholder=" …")


def save(page: Image.Image, path: Path) -> None:
    """Write a picture, and say where."""
    page.save(path, quality=80, method=6)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(exit_code(main))
