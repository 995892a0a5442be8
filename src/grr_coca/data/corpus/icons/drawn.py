"""The drawn icons of each set, one file a set, so that an interrupted build goes on with the next set."""

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grr_coca.data.corpus.icons.drawing import draw_icon, icon_svg
from grr_coca.data.corpus.icons.packages import Archives
from grr_coca.data.corpus.icons.sets import LOGO_SETS, IconSet
from grr_coca.files import write_whole

VERSION = "1"
"""Changes whenever what is drawn, or how it is kept, does: work of another version is not gone on with."""


@dataclass(frozen=True, kw_only=True)
class DrawnSet:
    """Drawn icons of a set, side by side, and what of them was left out and why.

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
        """The WebP of an icon."""
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
    """The names in each set of logos."""
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
    aliases: dict[str, list[str]] = {}
    for alias, entry in sorted(about.get("aliases", {}).items()):
        if set(entry) <= {"parent", "hidden"}:  # not one that is turned or mirrored
            aliases.setdefault(entry["parent"], []).append(alias)
    styles = [word for key in ("suffixes", "prefixes") for word in about.get(key, {}) if word]
    return DrawnSet(
        names=names,
        aliases=aliases,
        styles=styles,
        left_out=dict(left_out),
        digests=np.frombuffer(b"".join(drawing.digest for drawing in drawings), np.uint8).reshape(-1, 16),
        signatures=np.array([drawing.signature.ravel() for drawing in drawings], np.uint8).reshape(-1, 256),
        ends=np.cumsum([len(drawing.webp) for drawing in drawings], dtype=np.int64),
        webp=b"".join(drawing.webp for drawing in drawings),
    )


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
    write_whole(path, file.getvalue())


def read_drawn(folder: Path, prefix: str) -> DrawnSet:
    """The drawn icons of a set."""
    with np.load(drawn_path(folder, prefix), allow_pickle=False) as file:
        about = json.loads(file["about"].tobytes())
        arrays = {key: file[key] for key in ("digests", "signatures", "ends")}
        return DrawnSet(**about, **arrays, webp=file["webp"].tobytes())
