"""A contact sheet: one picture with some images of a source and their captions."""

import textwrap
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from grr_coca.data.bad import BadSample
from grr_coca.data.images import decode_image
from grr_coca.data.sources.pairs import PairSource
from grr_coca.data.sources.views import read_sound
from grr_coca.data.survey import spread

COLUMNS, ROWS = 8, 6
IMAGE_SIDE, MARGIN, LINE_HEIGHT, MAX_LINES, LETTERS_A_LINE = 144, 8, 14, 3, 24
FONT_SIZE = 11
CELL = (IMAGE_SIDE + 2 * MARGIN, IMAGE_SIDE + 3 * MARGIN + MAX_LINES * LINE_HEIGHT)


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(source: PairSource) -> Image.Image:
    """Draw images that are evenly spread over a source. For a bad pair, its cell names the cause."""
    indices = list(spread(len(source), COLUMNS * ROWS))
    sheet = Image.new("RGB", (COLUMNS * CELL[0], -(-len(indices) // COLUMNS) * CELL[1]), "white")
    font = label_font()
    for number, index in enumerate(indices):
        row, column = divmod(number, COLUMNS)
        sheet.paste(_cell(source, index, font), (column * CELL[0], row * CELL[1]))
    return sheet


def label_font() -> Font:
    """DejaVu Sans, which comes with matplotlib and has most alphabets; else Pillow's font, which has Latin letters."""
    if find_spec("matplotlib") is None:
        return ImageFont.load_default(FONT_SIZE)
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), FONT_SIZE)


def _cell(source: PairSource, index: int, font: Font) -> Image.Image:
    cell = Image.new("RGB", CELL, "white")
    draw = ImageDraw.Draw(cell)
    frame = (MARGIN, MARGIN, MARGIN + IMAGE_SIDE, MARGIN + IMAGE_SIDE)
    try:
        pair = read_sound(source, index)
        image = ImageOps.contain(decode_image(pair.image, pair.name), (IMAGE_SIDE, IMAGE_SIDE))
        cell.paste(image, (MARGIN + (IMAGE_SIDE - image.width) // 2, MARGIN + (IMAGE_SIDE - image.height) // 2))
        text, colour = pair.caption, "black"
    except BadSample as error:
        text, colour = str(error.cause), "firebrick"
        draw.line((*frame[:2], *frame[2:]), fill=colour)
    draw.rectangle(frame, outline="lightgrey" if colour == "black" else colour)
    lines = textwrap.wrap(text, LETTERS_A_LINE, max_lines=MAX_LINES, placeholder=" …")
    draw.multiline_text((MARGIN, IMAGE_SIDE + 2 * MARGIN), "\n".join(lines), colour, font, spacing=2)
    return cell
