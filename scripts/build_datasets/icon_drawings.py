"""The drawn icons of each set: pictures of 64 × 64 pixels, black on white, as WebP.

A picture is a pure function of its SVG. Each set has a file, so that an interrupted build goes on with the next set.

Shapes: S = 64 pixels a side.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from icon_sources import LOGO_SETS, Archives, IconSet
from jaxtyping import UInt8
from PIL import Image

from grr_coca.common.files import write_bytes_atomic
from grr_coca_icons.svg import render_svg

SIZE = 64
GREY_LEVELS = 16
QUALITY = 75
SIGNATURE_SIDE = 16
INK = 24
"""Smallest difference from white, of 255, at which a pixel counts as ink. Signatures are cropped to the ink."""

_TO_LEVELS = [(value * (GREY_LEVELS - 1) + 127) // 255 * (255 // (GREY_LEVELS - 1)) for value in range(256)]


@dataclass(frozen=True)
class Drawing:
    """A drawn icon: its file, the digest of its decoded pixels, and its signature (see `picture_signature`)."""

    webp: bytes
    digest: bytes
    signature: UInt8[np.ndarray, "16 16"]


def icon_svg(icon: Mapping, defaults: Mapping) -> str:
    """Return the SVG file of an icon of Iconify, which stores its body alone.

    Args:
        icon: its body, and the sides of its box that differ from those of the set.
        defaults: the sides of the box for the whole set.
    """
    left, top, width, height = icon_box(icon, defaults)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    view = f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}"'
    return f"<svg {names} {view}>{icon['body']}</svg>"


def icon_box(icon: Mapping, defaults: Mapping) -> tuple[float, float, float, float]:
    """Left, top, width and height of an icon's box; see `icon_svg`."""
    box = {"left": 0, "top": 0, "width": 16, "height": 16}
    left, top, width, height = (icon.get(key, defaults.get(key, value)) for key, value in box.items())
    return left, top, width, height


def draw_icon(svg: str) -> Drawing | None:
    """Draw an SVG over white, in the middle if it is oblong; None if nothing is visible.

    Raises:
        ValueError: the SVG cannot be drawn.
    """
    image = render_svg(svg, SIZE)
    if image.getchannel("A").getbbox() is None:
        return None
    canvas = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 255))
    canvas.alpha_composite(image)
    webp, pixels = _compress(canvas.convert("RGB"))
    signature = picture_signature(pixels)
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
    return None if signature is None else Drawing(webp, digest, signature)


def _compress(image: Image.Image) -> tuple[bytes, Image.Image]:
    """The WebP file of a picture, and what it decodes to. Grey pictures: lossless, 16 levels. Coloured ones: lossy."""
    file = io.BytesIO()
    pixels = np.asarray(image)
    if (pixels == pixels[..., :1]).all():
        image = image.convert("L").point(_TO_LEVELS).convert("RGB")
        image.save(file, "WEBP", lossless=True, quality=100, method=2)
        return file.getvalue(), image
    image.save(file, "WEBP", quality=QUALITY, method=4)
    return file.getvalue(), Image.open(file).convert("RGB")


def picture_signature(image: Image.Image) -> UInt8[np.ndarray, "16 16"] | None:
    """Return a picture on white, cropped to its ink and scaled to 16 × 16 greys; None if it is all white.

    Near-identical drawings have near signatures, whatever their margins.
    """
    grey = image.convert("L")
    box = grey.point(lambda value: 255 * (value <= 255 - INK)).getbbox()
    if box is None:
        return None
    side = max(box[2] - box[0], box[3] - box[1])
    square = Image.new("L", (side, side), 255)
    square.paste(grey.crop(box), ((side - box[2] + box[0]) // 2, (side - box[3] + box[1]) // 2))
    return np.asarray(square.resize((SIGNATURE_SIDE, SIGNATURE_SIDE), Image.Resampling.BOX))


# --- Sets of drawings

VERSION = "1"
"""Version of the drawings and of their files. A build does not use files of another version."""


@dataclass(frozen=True, kw_only=True)
class DrawnSet:
    """Drawn icons of a set, concatenated, and the number of icons left out for each reason.

    `names`: Iconify's; `aliases`: further names of the same picture, by icon; `styles`: words of drawing style that
    the set itself declares as endings or beginnings of names.
    """

    names: list[str]
    aliases: dict[str, list[str]]
    styles: list[str]
    left_out: dict[str, int]
    digests: np.ndarray  # N 16, uint8
    signatures: np.ndarray  # N 256, uint8
    ends: np.ndarray  # N, of each picture in `webp`
    webp: bytes

    def picture(self, index: int) -> bytes:
        """Return the WebP of an icon."""
        return self.webp[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])]


def draw_sets(archives: Archives, sets: Mapping[str, IconSet], folder: Path, on_icon: Callable[[int], None]) -> None:
    """Draw all sets that are not drawn yet, a file `PREFIX.npz` each.

    Args:
        archives: the packages.
        sets: the sets of the corpus.
        folder: where the files lie.
        on_icon: called with the number of icons done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    for name, content in archives.files("iconify", lambda name: name.startswith("json/")):
        prefix = name.removeprefix("json/").removesuffix(".json")
        if prefix not in sets:
            continue
        about = json.loads(content)
        path = drawn_path(folder, prefix)
        if not path.exists():
            _write(path, _draw_set(about, lambda number, before=done: on_icon(before + number)))  # type: ignore[misc]
        done += len(about["icons"])
        on_icon(done)


def read_logo_names(archives: Archives) -> list[list[str]]:
    """Return the names in each set of logos."""
    paths = {f"json/{prefix}.json" for prefix in LOGO_SETS}
    return [list(json.loads(content)["icons"]) for _, content in archives.files("iconify", paths.__contains__)]


def drawn_path(folder: Path, prefix: str) -> Path:
    """Where the drawn icons of a set lie."""
    return folder / f"{prefix}.v{VERSION}.npz"


def _draw_set(about: dict, on_icon: Callable[[int], None]) -> DrawnSet:
    left_out: Counter[str] = Counter()
    names, drawings = [], []
    for number, (name, icon) in enumerate(about["icons"].items()):
        on_icon(number)
        if icon.get("hidden"):
            left_out["hidden"] += 1
            continue
        try:
            drawing = draw_icon(icon_svg(icon, about))
        except ValueError:
            left_out["not drawn"] += 1
            continue
        if drawing is None:
            left_out["empty"] += 1
            continue
        names.append(name)
        drawings.append(drawing)
    return DrawnSet(
        names=names,
        aliases=aliases_of(about),
        styles=declared_styles(about),
        left_out=dict(left_out),
        digests=np.frombuffer(b"".join(drawing.digest for drawing in drawings), np.uint8).reshape(-1, 16),
        signatures=np.array([drawing.signature.ravel() for drawing in drawings], np.uint8).reshape(-1, 256),
        ends=np.cumsum([len(drawing.webp) for drawing in drawings], dtype=np.int64),
        webp=b"".join(drawing.webp for drawing in drawings),
    )


def aliases_of(about: Mapping) -> dict[str, list[str]]:
    """Further names of the icons of a set, by icon."""
    aliases: dict[str, list[str]] = {}
    for alias, entry in sorted(about.get("aliases", {}).items()):
        if set(entry) <= {"parent", "hidden"}:  # not one that is turned or mirrored
            aliases.setdefault(entry["parent"], []).append(alias)
    return aliases


def declared_styles(about: Mapping) -> list[str]:
    """Words of drawing style that a set declares as endings or beginnings of names."""
    return [word for key in ("suffixes", "prefixes") for word in about.get(key, {}) if word]


def _write(path: Path, drawn: DrawnSet) -> None:
    about = {"names": drawn.names, "aliases": drawn.aliases, "styles": drawn.styles, "left_out": drawn.left_out}
    file = io.BytesIO()
    np.savez(
        file,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        digests=drawn.digests,
        signatures=drawn.signatures,
        ends=drawn.ends,
        webp=np.frombuffer(drawn.webp, np.uint8),
    )
    write_bytes_atomic(path, file.getvalue())


def read_drawn(folder: Path, prefix: str) -> DrawnSet:
    """Return the drawn icons of a set."""
    with np.load(drawn_path(folder, prefix), allow_pickle=False) as file:
        about = json.loads(file["about"].tobytes())
        arrays = {key: file[key] for key in ("digests", "signatures", "ends")}
        return DrawnSet(**about, **arrays, webp=file["webp"].tobytes())
