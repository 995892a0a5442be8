"""Cut a sample of 400 icons out of the packages of the corpus `icons`, for tests: archives that are built from alike.

    python scripts/build_datasets/icon_sample.py OUT [--archives FOLDER]

OUT gets one small archive for each package, with the same layout inside; the tests know no other ones.
"""

import argparse
import gzip
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from icon_sources import LOGO_SETS, Archives

from grr_coca.cli import exit_code
from grr_coca.common.files import user_cache

ICONS = {
    "tabler": 60, "carbon": 40, "game-icons": 30, "flat-color-icons": 15, "bi": 40, "lucide": 45, "feather": 20,
    "ph": 60, "ic": 30, "mdi": 30, "fa6-solid": 15, "la": 15,
}  # fmt: skip
"""Icons of each set."""

LEFT_OUT = ("noto", "typcn", "cbi", "healthicons", "arcticons")
"""Sets that the corpus leaves out, each for another reason; they are in the sample's list of sets alone."""

NUM_LOGOS = 40


def main() -> None:
    """Write the archives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the small archives")
    parser.add_argument("--archives", type=Path, default=user_cache() / "packages", help="folder of the packages")
    options = parser.parse_args()
    archives = Archives(options.archives)
    sets = dict(_sets(archives))
    collections = archives.json("iconify", "collections.json")
    listed = {prefix: about for prefix, about in collections.items() if prefix in {*sets, *LEFT_OUT}}
    names = {prefix: set(about["icons"]) for prefix, about in sets.items()}
    files = {
        "iconify": {"collections.json": json.dumps(listed)}
        | {f"json/{prefix}.json": json.dumps(about) for prefix, about in sets.items()},
        "tabler": {"icons.json": json.dumps(_some(archives.json("tabler", "icons.json"), names["tabler"]))},
        "lucide": {"tags.json": json.dumps(_some(archives.json("lucide", "tags.json"), names["lucide"]))},
        "mdi": {"meta.json": json.dumps([e for e in archives.json("mdi", "meta.json") if e["name"] in names["mdi"]])},
        "phosphor": {"dist/index.mjs": _phosphor(archives.text("phosphor", "dist/index.mjs"), names["ph"])},
    }
    for key, content in files.items():
        _write(options.out / archives.packages[key].archive, content)


def _sets(archives: Archives) -> Iterator[tuple[str, dict]]:
    for file, content in archives.files("iconify", lambda name: name.startswith("json/")):
        prefix = Path(file).stem
        count = ICONS.get(prefix, NUM_LOGOS if prefix in LOGO_SETS else 0)
        if count:
            about = json.loads(content)
            # Every so many things, each with all its drawings.
            stems = sorted({_stem(name) for name in about["icons"]})
            step = max(1, len(stems) * 3 // count) if prefix in ("ph", "ic") else max(1, len(stems) // count)
            kept = set(stems[::step])
            icons = {n: icon for n, icon in about["icons"].items() if _stem(n) in kept and not icon.get("hidden")}
            icons = dict(list(icons.items())[:count])
            if prefix in LOGO_SETS:
                icons = {name: {"body": ""} for name in icons}
            aliases = {a: entry for a, entry in about.get("aliases", {}).items() if entry["parent"] in icons}
            yield (
                prefix,
                {**{k: about[k] for k in about if k not in ("info", "categories")}, "icons": icons, "aliases": aliases},
            )


def _stem(name: str) -> str:
    return re.sub(r"^(baseline|outline|round|sharp|twotone)-|-(bold|fill|light|thin|duotone|outline|filled)$", "", name)


def _some(table: dict, names: set[str]) -> dict:
    return {name: entry for name, entry in table.items() if name in names}


def _phosphor(script: str, names: set[str]) -> str:
    entries = re.findall(r'\{\s*name: "[a-z0-9-]+".*?\n  \}', script, flags=re.DOTALL)
    stems = {_stem(name) for name in names}
    return ",\n".join(entry for entry in entries if re.search(r'name: "([a-z0-9-]+)"', entry)[1] in stems)  # type: ignore[index]


def _write(path: Path, files: dict[str, str]) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(packed.getvalue(), mtime=0))


if __name__ == "__main__":
    sys.exit(exit_code(main))
