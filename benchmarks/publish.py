"""Write measured tables into pages, and report which numbers other pages lack: `make bench-docs`.

A table begins with `<!-- measured NAME -->` and ends with `<!-- end -->`; it is made of JSON files of `results/`.
Single numbers are typed, and held to their files by the pieces of `docs/numbers.txt`.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from plots import LENGTHS, NAMES

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
NUMBERS = ROOT / "docs" / "numbers.txt"
CARD = ROOT / "src" / "grr_coca" / "model" / "weights" / "icons" / "card.json"
TABLED = tuple(
    ROOT / name for name in ("docs/performance.md", "docs/deploy.md", "benchmarks/README.md", "benchmarks/open-clip.md")
)
TABLE = re.compile(r"(?P<begin><!-- measured (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
PLACE = re.compile(r"\{(?P<file>\S+) (?P<keys>[^{}]+) (?P<format>\S+)\}")


def published(text: str) -> str:
    """Return a document with the newest tables."""
    return TABLE.sub(_with_table, text)


def training_table() -> str:
    """Return the table of a training step next to open_clip's, on two machines."""
    here, there = (_results(name)["rows"] for name in ("training", "xeon/training"))
    heads = ("captions", "precision", "GRR-CoCa, images/s", "open_clip, images/s", "speed-up", "on the Xeon")
    lines = []
    for name in TRAINING_ROWS:
        row, ratios = here[name], here[name]["ratios"]
        speeds = (f"{row['sides'][side]['images_per_second']:.3g}" for side in ("ours", "open_clip"))
        others = (f"{ratios['speed']:.2f}", f"{there[name]['ratios']['speed']:.2f}", f"{ratios['memory']:.0%}")
        lines.append((LENGTHS[row["lengths"]], row["precision"], *speeds, *others))
    return _markdown((*heads, "memory"), lines)


def compiled_table() -> str:
    """Return the table of a training step next to open_clip's main branch and its release, all compiled."""
    heads = ("open_clip", "captions", "precision", "batch", "GRR-CoCa, s/step", "open_clip, s/step", "speed-up")
    versions = {"open_clip_main": "4.2.0.dev0", "open_clip_compiled": "3.3.0"}
    lines = []
    for row in _results("zen5")["training"]:
        if row["peer"] in versions:
            place = (versions[row["peer"]], LENGTHS[row["lengths"]], row["precision"], str(row["batch"]))
            ours, peer = row["ours_s"], row["peer_s"]
            lines.append((*place, f"{ours:.2f}", f"{peer:.2f}", f"{peer / ours:.2f}"))
    return _markdown(heads, lines)


def captioning_table() -> str:
    """Captions a second beside the peers', on two machines."""
    here, there = (_results(name)["cells"] for name in ("captioning", "xeon/captioning"))
    heads = (
        "decoding",
        "images",
        "new tokens",
        "GRR-CoCa, captions/s",
        "peer",
        "peer, captions/s",
        "speed-up",
        "on the Xeon",
    )
    lines = []
    for key in CAPTIONING_ROWS:
        cell, other = _entry(here, key), _entry(there, key)
        ours, its = _captions_a_second(cell)
        ratios = (f"{found['ratio']:.1f}" for found in (cell, other))
        place = (cell["method"], str(cell["batch"]), str(cell["tokens"]))
        lines.append((*place, ours, NAMES[cell["peer"]], its, *ratios))
    return _markdown(heads, lines)


def int8_table() -> str:
    """Ours in int8 beside the peers in fp32: what both machines measured."""
    heads = (
        "decoding",
        "new tokens",
        "images",
        "peer",
        "GRR-CoCa, captions/s",
        "peer, captions/s",
        "speed-up",
        "on the Zen 5",
    )
    same = ("method", "tokens", "batch", "peer")
    there = {tuple(cell[key] for key in same): f"{cell['ratio']:.1f}" for cell in _results("zen5")["captions_int8"]}
    lines = []
    for cell in _results("captioning-int8")["cells"]:
        place = (cell["method"], str(cell["tokens"]), str(cell["batch"]), NAMES[cell["peer"]])
        other = there.get(tuple(cell[key] for key in same))
        if other is not None:
            lines.append((*place, *_captions_a_second(cell), f"{cell['ratio']:.1f}", other))
    return _markdown(heads, lines)


def _captions_a_second(cell: dict[str, Any]) -> list[str]:
    """Ours, and the peer's."""
    return [f"{cell['batch'] / statistics.median(cell['seconds'][side]):.3g}" for side in ("ours", cell["peer"])]


def imported_table() -> str:
    """CPU seconds of captions by open_clip's own architecture, here and there."""
    lines = []
    for row in _results("imported")["rows"]:
        place = row["decoding"].split("-")
        lines.append((*place, f"{row['ours_s']:.2f}", f"{row['open_clip_s']:.2f}", f"{row['ratio']:.1f}"))
    return _markdown(("decoding", "images", "GRR-CoCa, s", "open_clip, s", "speed-up"), lines)


def engines_table() -> str:
    """PyTorch's time for an item, and how many times as fast ONNX Runtime is, for batches of 1, 8 and 32.

    Those of `icons` are of weights that no longer ship.
    """
    rows = [row for row in _results("engines")["rows"] if row["model"] != "icons"]
    lines = []
    for model, width, task in dict.fromkeys((row["model"], row["width"], row["task"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["task"]) == (model, task)]
        full, quantized = ([row for row in mine if row["precision"] == name] for name in ("fp32", "int8"))
        times = (f"{ms:,.0f}" if ms >= 1000 else f"{ms:.3g}" for ms in (row["torch_ms"] for row in full))
        ratios = (" / ".join(f"{row['times_as_fast']:.1f}" for row in found) for found in (full, quantized))
        lines.append((model, str(width), task, " / ".join(times), *ratios))
    return _markdown(("model", "width", "task", "PyTorch, ms", "speed-up of ONNX", "in int8"), lines)


def precision_table() -> str:
    """What int8 changes, over all drawings of the test splits."""
    rows = _results("precision")["rows"]
    heads = ("model", "drawings", "exactly right", "R@1", "same as fp32", "same in a batch of 1", "lowest cosine")
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        count = sum(row["images"] for row in mine)
        shares = {
            key: f"{sum(row[key] * row['images'] for row in mine) / count:.1%}"
            for key in mine[0]
            if key.startswith(("exact", "R@1", "int8_as", "int8_alone_as"))
        }
        pairs = (f"{shares[f'{key}_fp32']}, {shares[f'{key}_int8']}" for key in ("exact", "R@1"))
        same = (shares["int8_as_fp32"], shares["int8_alone_as_in_a_batch"])
        lowest = min(row[key] for row in mine for key in ("int8_cosine", "int8_alone_cosine"))
        lines.append((model, str(count), *pairs, *same, f"{lowest:.4f}"))
    return _markdown(heads, lines)


def data_table() -> str:
    """Loader, order and index."""
    lines = []
    for name, what, text, unit in DATA_ROWS:
        (row,) = [row for row in _results(name)["rows"] if row["what"] == what]
        aim = row["target"].replace("<=", "≤").replace(">=", "≥")
        lines.append((text, f"{row['measured']:g} {unit}", f"{aim} {unit}"))
    return _markdown(("measurement", "result", "target"), lines)


def decoding_table() -> str:
    """Decoding in helper programs, beside a version that decoded in the process that uses the pictures."""
    lines = []
    for row in _results("decoding")["rows"]:
        part, _, what = row["what"].partition(": ")
        unit = " ms" if part == "command" else ""
        low, _, high = row["interval"].partition(" to ")
        found = f"{row['now to before']:g}{unit} [{low}, {high}]".replace("-", "−")
        aim = row["target"].replace("<= ", "≤ ").replace(">= ", "≥ ")
        lines.append((DECODING_PARTS[part].format(what), f"{row['before, s']:g}", f"{row['now, s']:g}", found, aim))
    return _markdown(("task", "before, s", "in subprocesses, s", "speed-up [95%]", "target"), lines)


TRAINING_ROWS = [f"{lengths}-{precision}" for lengths in ("full", "cc12m", "coco") for precision in ("fp32", "bf16")]
CAPTIONING_ROWS = [
    f"method={method},batch={batch},tokens={tokens}"
    for method, batches_and_tokens in {
        "greedy": ((1, 20), (8, 20)),
        "sampling": ((1, 20), (8, 20), (8, 60)),
        "beam": ((8, 20), (8, 60)),
    }.items()
    for batch, tokens in batches_and_tokens
]
DATA_ROWS = (
    ("order", "state, bytes", "order of 12 million samples: size of its state", "bytes"),
    ("order", "seek, s", "order of 12 million samples: longest time to move to a position", "s"),
    ("order", "memory, MB", "order and index of 12 million samples: memory", "MB"),
    ("loader", "loader / step in the first epoch", "speed of loading over that of training `tiny`: first epoch", "×"),
    (
        "loader",
        "loader / step in later epochs",
        "speed of loading over that of training `tiny`: later epochs of a small corpus, kept decoded in memory",
        "×",
    ),
)
"""Results file, its row, what a reader calls it, and the unit."""
DECODING_PARTS = {
    "http": "`serve`, 16 clients: {}",
    "index": "`index`: {}",
    "loader": "training loader: {}",
    "command": "`caption`: {}",
}
TABLES: dict[str, Callable[[], str]] = {
    "training": training_table,
    "compiled": compiled_table,
    "captioning": captioning_table,
    "int8": int8_table,
    "imported": imported_table,
    "engines": engines_table,
    "precision": precision_table,
    "data": data_table,
    "decoding": decoding_table,
}


def _markdown(heads: Sequence[str], lines: list[tuple[str, ...]]) -> str:
    rule = ("---", *("---:" for _ in heads[1:]))
    rows = [f"|{'|'.join(line)}|" for line in (heads, *lines)]
    rows.insert(1, f"|{'|'.join(rule)}|")
    return "".join(f"{row}\n" for row in rows).replace("%", " %")


def _results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _with_table(place: re.Match[str]) -> str:
    return f"{place['begin']}{TABLES[place['name']]()}{place['end']}"


def lacking(page: Path, pieces: Iterable[str]) -> list[str]:
    """Return the pieces that a page lacks, with the numbers that they must have."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", page.read_text(encoding="utf-8"))
    text = " ".join(re.sub("[*`]", "", text).split())
    return [filled for filled in (PLACE.sub(_number, piece) for piece in pieces) if filled not in text]


def pieces_of_pages() -> dict[Path, list[str]]:
    """Return the pieces of each page with their places, from `docs/numbers.txt`."""
    found: dict[Path, list[str]] = {}
    for line in NUMBERS.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            pieces = found.setdefault(ROOT / line[3:], [])
        elif line and not line.startswith("#"):
            pieces.append(line)
    return found


def _number(place: re.Match[str]) -> str:
    path = CARD if place["file"] == CARD.name else RESULTS / place["file"]
    measured = json.loads(path.read_text(encoding="utf-8"))
    values = [_at(measured, keys) for keys in place["keys"].split(" / ")]
    return format(values[0] / values[1] if len(values) == 2 else values[0], place["format"]).replace("%", " %")


def _at(value: Any, keys: str) -> Any:
    for key in keys.split(":"):
        value = _entry(value, key) if isinstance(value, list) else value[key]
    return value


def _entry(entries: list[dict[str, Any]], key: str) -> dict[str, Any]:
    wanted = dict(condition.split("=") for condition in key.split(","))
    (found,) = [entry for entry in entries if wanted.items() <= {name: str(x) for name, x in entry.items()}.items()]
    return found


def main() -> None:
    """Rewrite the tables, and print which numbers the pages lack."""
    for path in TABLED:
        path.write_text(published(path.read_text(encoding="utf-8")), encoding="utf-8")
    for page, pieces in pieces_of_pages().items():
        for piece in lacking(page, pieces):
            print(f"{page.relative_to(ROOT)} does not say: {piece}")


if __name__ == "__main__":
    main()
