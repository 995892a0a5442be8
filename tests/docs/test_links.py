"""Links between the Markdown files of the repository lead somewhere."""

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "datasets", "docs", "src", "studies")
BUILT = ROOT / "docs" / "_build"
"""The site, with copies of pages whose links it has rewritten."""
FOUND = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
PAGES = sorted(page for page in FOUND if BUILT not in page.parents)
LINK = re.compile(r"\]\((?P<path>[^)\s#]*)(?:#(?P<anchor>[^)\s]*))?\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def is_dead(page: Path, link: re.Match[str]) -> bool:
    target = (page.parent / unquote(link["path"])).resolve() if link["path"] else page
    return not target.exists() or bool(
        link["anchor"] and target.suffix == ".md" and link["anchor"] not in anchors(target)
    )


def test_no_link_is_dead():
    links = [(page, link) for page in PAGES for link in LINK.finditer(CODE.sub("``", page.read_text("utf-8")))]
    assert len(links) > 200
    assert [(page, link[0]) for page, link in links if "://" not in link["path"] and is_dead(page, link)] == []
