"""Create self-contained HTML pages from Markdown: `html_page`."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from urllib.parse import quote, unquote

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

_SPECIAL = re.compile(r"([\\`*_\[\]<>#|&])")


def html_page(title: str, markdown: str, pictures: Mapping[str, str | bytes]) -> str:
    """Convert Markdown to an HTML page with embedded pictures.

    Args:
        title: Title of the page.
        markdown: Text in CommonMark with tables. HTML in the text is shown as text.
        pictures: Pictures by their address in the Markdown, as the text of an SVG file or the bytes of a WebP file. A
            missing picture is replaced by its alternative text.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.add_render_rule("image", _image)
    reader.add_render_rule("table_open", lambda *_: '<div class="scroll"><table>\n')
    reader.add_render_rule("table_close", lambda *_: "</table></div>\n")
    body = reader.render(markdown, {"pictures": pictures})
    style = resources.files("grr_coca_study").joinpath("page.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def escape_markdown(text: str) -> str:
    """Escape a text from a user or model for Markdown. Line breaks and runs of spaces become single spaces."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def markdown_picture(alt: str, address: str) -> str:
    """Return a picture in Markdown. `address` is the address without percent-encoding, such as a path."""
    return f"![{escape_markdown(alt)}]({quote(address, errors='surrogateescape')})"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, of_numbers: bool = False) -> str:
    """Return a table in Markdown. With `of_numbers`, all columns but the first are right-aligned.

    Vertical bars in cells are escaped.
    """
    lines = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in line] for line in (heads, *rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(heads))]
    rule = ["-" * widths[0], *("-" * (width - 1) + (":" if of_numbers else "-") for width in widths[1:])]
    pad = str.rjust if of_numbers else str.ljust
    padded = [
        [line[0].ljust(widths[0]), *(pad(cell, width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (padded[0], rule, *padded[1:])) + "\n"


def _image(_: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:  # noqa: ARG001
    token = tokens[index]
    alt = html.escape("".join(child.content for child in token.children or ()))
    found = env["pictures"].get(unquote(str(token.attrs["src"]), errors="surrogateescape"))
    if found is None:
        return f"<em>{alt}</em>"
    if isinstance(found, str):
        return f'<span class="figure" role="img" aria-label="{alt}">{found}</span>'
    return f'<img src="data:image/webp;base64,{base64.b64encode(found).decode()}" alt="{alt}" title="{alt}">'
