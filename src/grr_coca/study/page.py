"""Pages of reports: one HTML file each, with everything in it."""

from importlib import resources

import jinja2

from grr_coca.study.drawing import COLOURS

STYLE_FILE = "page.css"


def render_page(room: str, template: str, **values: object) -> str:
    """Fill in a template; `style` is known to it, the look that all pages share.

    Args:
        room: the package in which the template lies.
        template: its file name.
        values: what it shows.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = lambda share: f"{share:+.2%}"
    colours = f"  :root {{ --a: {COLOURS[0]}; --b: {COLOURS[1]}; --line: #d9dde2; --soft: #5b6570; }}\n"
    style = colours + _text("grr_coca.study", STYLE_FILE)
    return environment.from_string(_text(room, template)).render(style=style, **values)


def _text(room: str, name: str) -> str:
    return resources.files(room).joinpath(name).read_text("utf-8")
