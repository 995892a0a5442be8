"""Puts the tables of `results/*.md` into the places of `docs/performance.md` that ask for them: `make bench-docs`.

A place begins with `<!-- results/NAME.md -->` and ends with `<!-- end -->`.
"""

import re
from pathlib import Path

from machine import RESULTS

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
PLACE = re.compile(r"(?P<begin><!-- results/(?P<name>[\w./]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)


def filled(place: re.Match[str]) -> str:
    """The place with the newest table; as it was where there is none yet."""
    path = RESULTS / place["name"]
    return f"{place['begin']}{path.read_text()}{place['end']}" if path.exists() else place[0]


def main() -> None:
    """Rewrite the document."""
    DOCUMENT.write_text(PLACE.sub(filled, DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
