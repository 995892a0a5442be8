"""Puts what was measured into the pages of `docs/` and `benchmarks/`: `make bench-docs`.

A table begins with `<!-- results/NAME.md -->` and ends with `<!-- end -->`. A single number stands between
`<!-- figure FILE KEY:KEY:… FORMAT -->` and `<!-- end -->`. FILE is a JSON file of `results/`, or one elsewhere by its
path from the root. The keys lead to the number; in a list, `name=value,…` picks an entry. FORMAT is how Python is to
write it: `.0%` gives `61 %`.
"""

import json
import re
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
DOCUMENTS = (*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md")))
TABLE = re.compile(r"(?P<begin><!-- results/(?P<name>[\w./]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
FIGURE = re.compile(r"(?P<begin><!-- figure (?P<file>\S+) (?P<keys>.+?) (?P<format>\S+) -->).*?(?P<end><!-- end -->)")


def published(text: str) -> str:
    """A document with the newest tables and figures."""
    return FIGURE.sub(_with_number, TABLE.sub(_with_table, text))


def _with_table(place: re.Match[str]) -> str:
    path = RESULTS / place["name"]  # a benchmark that was never run leaves its place as it was
    return f"{place['begin']}{path.read_text(encoding='utf-8')}{place['end']}" if path.exists() else place[0]


def _with_number(place: re.Match[str]) -> str:
    folder = ROOT if "/" in place["file"] else RESULTS
    value = json.loads((folder / place["file"]).read_text(encoding="utf-8"))
    for key in place["keys"].split(":"):
        value = _entry(value, key) if isinstance(value, list) else value[key]
    return f"{place['begin']}{format(value, place['format']).replace('%', ' %')}{place['end']}"


def _entry(entries: list[dict[str, object]], key: str) -> object:
    wanted = dict(condition.split("=") for condition in key.split(","))
    (found,) = [entry for entry in entries if wanted.items() <= {name: str(x) for name, x in entry.items()}.items()]
    return found


def main() -> None:
    """Rewrite the documents."""
    for path in DOCUMENTS:
        path.write_text(published(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
