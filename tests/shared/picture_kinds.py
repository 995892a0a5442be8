"""Picture files of all kinds that people have, on which implementations of one preprocessing must agree."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from support import real_pairs

PICTURES = Path(__file__).parents[1] / "core" / "data" / "pictures"


def write_pictures(folder: Path) -> list[Path]:
    """Drawings, alone and in pictures with wide margins, photographs that fill their frame, blank and tiny pictures, in
    several modes."""
    star = Image.new("RGBA", (150, 90), (255, 255, 255, 0))
    ImageDraw.Draw(star).regular_polygon((100, 40, 25), 5, fill=(200, 30, 60, 255))
    on_blue = Image.alpha_composite(Image.new("RGBA", star.size, "royalblue"), star).convert("RGB")
    grey = np.asarray(star.getchannel("A")).astype(np.uint16) * 201 + 3000
    made = {
        "transparent": star,
        "on-blue": on_blue,
        "small": on_blue.resize((30, 18)),
        "at-the-edge": on_blue.crop((74, 0, 150, 90)),
        "dot": on_blue.resize((9, 5)),
        "large": on_blue.resize((900, 540)),
        "blank": Image.new("RGB", (40, 30), "white"),
        "red": Image.new("RGB", (64, 64), "red"),
        "pixel": Image.new("RGB", (1, 1), "navy"),
        "line": on_blue.crop((0, 40, 150, 41)),
        "palette": on_blue.convert("P", palette=Image.Palette.ADAPTIVE, colors=16),
        "noise": Image.effect_noise((70, 50), 100).convert("RGB"),
        "grey": star.getchannel("A"),
        "grey-16-bit": Image.fromarray(grey),
        "black-and-white": star.getchannel("A").convert("1"),
    }
    for name, image in made.items():
        image.save(folder / f"{name}.png")
    on_blue.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    on_blue.save(folder / "lossy.jpg", quality=40)
    for number, pair in enumerate(real_pairs(12)):
        (folder / f"drawing-{number}.webp").write_bytes(pair.image)
    return sorted(folder.iterdir())
