"""The page of results as a PDF with title, version, date and abstract: `make paper`, which writes `_build/results.pdf`.

The abstract is the page's own answer and its description of the models, so `studies/check.py` holds the PDF too.
Methods are those of `studies/README.md`. WeasyPrint needs Pango: `apt-get install libpangoft2-1.0-0`.
"""

import html
import re
import sys
from pathlib import Path

import yaml
from markdown_it import MarkdownIt

DOCS = Path(__file__).parent
ROOT = DOCS.parent
TITLE = "GRR-CoCa against Baseline CoCa: an independent test at a small scale"
STYLE = """
@page { size: A4; margin: 15mm 19mm; @bottom-center { content: counter(page); font-size: 8pt; color: #5b6570 } }
body { font: 8.6pt/1.3 "DejaVu Serif", serif; text-align: justify; hyphens: auto }
h1 { font-size: 16pt; text-align: center; margin: 0 0 4pt }
h2 { font-size: 11.5pt; margin: 12pt 0 3pt; break-after: avoid }
h3 { font-size: 9.8pt; margin: 8pt 0 2pt; break-after: avoid }
.about { text-align: center; color: #5b6570 }
.abstract { margin: 8pt 10mm }
h3 + p { break-after: avoid }
p, ul, ol { margin: 4pt 0 }
ul, ol { padding-left: 14pt }
img { display: block; width: 86%; margin: 4pt auto 0 }
table { border-collapse: collapse; width: 100%; font-size: 7.4pt; text-align: left; hyphens: none; margin: 5pt 0 }
th, td { border-top: 0.5pt solid #b9c0c7; padding: 1.8pt 2.5pt; vertical-align: top }
td[style*=right], td:last-child { white-space: nowrap }
.wide table { font: 6.2pt/1.34 "DejaVu Serif Condensed", "DejaVu Serif", serif }
.wide td[style*=right]:nth-child(2) { white-space: normal }
table, tr { break-inside: avoid }
a { color: inherit; text-decoration: none }
code { font: 8.4pt "DejaVu Sans Mono", monospace }
"""


def main() -> None:
    """Write the PDF."""
    try:
        from weasyprint import HTML
    except OSError as error:
        sys.exit(f"WeasyPrint needs a system library ({error}); try: apt-get install libpangoft2-1.0-0")
    out = DOCS / "_build" / "results.pdf"
    out.parent.mkdir(exist_ok=True)
    HTML(string=page(), base_url=str(DOCS)).write_pdf(out)
    print(out.relative_to(ROOT))


def page() -> str:
    """The document as HTML."""
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    _, question, answer, rest = re.split(r"\n\n", text, maxsplit=3)
    box, models, rest = re.split(r"\n\n(?=\[The models\]|!\[)", rest, maxsplit=2)
    archive = (ROOT / "studies" / "README.md").read_text(encoding="utf-8")
    methods = between(archive, "## Method\n", "\nFormulas")
    numbers = between(archive, "**The settings of *Results* in numbers.**", "\n## ")
    authors = ", ".join(author["name"] for author in about["authors"])
    version = f"Version {about['version']}, {about['date-released']}. {about['license']}."
    content = f"{box}\n\n{rest.replace('## Citation', '## Data and code')}"
    body = f"{content}\n\n## Study design\n{methods}"
    parts = [
        f"<h1>{TITLE}</h1>",
        f'<p class="about">{html.escape(authors)}<br>{html.escape(version)}</p>',
        f'<div class="abstract">{rendered(f"**Abstract.** {plain(question)} {plain(answer)}")}{rendered(models)}</div>',
        rendered(body),
        f'<h2>The settings in numbers</h2>\n<div class="wide">{rendered(numbers)}</div>',
        f"<h2>References</h2>{rendered(references(about['references']))}",
    ]
    known = {"author": authors, "dcterms.created": about["date-released"]}
    head = "".join(f'<meta name="{name}" content="{value}">' for name, value in known.items())
    return f"<html lang=en><title>{TITLE}</title>{head}<style>{STYLE}</style>{''.join(parts)}</html>"


def rendered(markdown: str) -> str:
    """Markdown as HTML."""
    return str(MarkdownIt().enable("table").render(markdown.replace(" %", "\u00a0%")))


def plain(markdown: str) -> str:
    """A paragraph without stars around it."""
    return markdown.strip("*\n")


def between(text: str, begin: str, end: str) -> str:
    """The part of a text between two others."""
    return text.partition(begin)[2].partition(end)[0]


def references(known: list[dict[str, object]]) -> str:
    """The works that are cited, a line each."""
    lines = []
    for work in known:
        authors = ", ".join(author["name"] for author in work["authors"])  # type: ignore[attr-defined]
        lines.append(f"- {authors} *{work['title']}*. {work['year']}. {work['url']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
