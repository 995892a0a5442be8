"""Sphinx builds the site from the pages of this folder: `make docs`."""

import re

from docutils import nodes
from sphinx.application import Sphinx

import grr_coca

project = "GRR-CoCa"
release = version = grr_coca.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"GRR-CoCa {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "friendly"
pygments_dark_style = "native"
html_show_sphinx = False
html_show_copyright = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# The notebook was run before; `make test-slow` runs it anew.
nb_execution_mode = "off"

# Docstrings put code between single backticks, and their sections are Google's.
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes with types are documented by autodoc already
napoleon_use_rtype = False
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

SHAPE = re.compile(r"~?(?:jaxtyping\.)?(\w+)\[(?:~?torch\.)?Tensor, '([^']*)'\]")
IMAGE = "str | ~pathlib.Path | ~PIL.Image.Image | ~numpy.ndarray | ~torch.Tensor"
KEPT_DOCSTRINGS: dict[str, list[str]] = {}
UNIT = re.compile(r"(?<=[\d)]) (?=[%×])|(?<=[≥≤]) (?=\d)")
ARCHIVED = re.compile(r"\]\((\.\./(?!src/)[\w./-]+\.md)(?:#[\w-]*)?\)")
ALIASES = {f"{IMAGE} | ~collections.abc.Iterable[{IMAGE}]": "ImagesInput", IMAGE: "ImageInput"}


def _shorten(
    _app: Sphinx, _what: str, _name: str, _obj: object, _options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write `Float[Tensor, 'B 3 H W']` and `ImagesInput` as our source does. Sphinx cannot read `<factory>`."""

    def short(text: str | None) -> str | None:
        for long, alias in ALIASES.items():
            text = text and text.replace(long, alias)
        return text and SHAPE.sub(r"\1[Tensor, '\2']", text).replace("<factory>", "...")

    return short(signature), short(returns)


def _keep_docstring(_app: Sphinx, what: str, name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Keep the docstring of a constant or field. Napoleon would take what stands before its first colon for a type."""
    if what in ("attribute", "data", "property"):
        KEPT_DOCSTRINGS[name] = list(lines)


def _markdown_to_rst(_app: Sphinx, _what: str, name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Show Markdown tables and drawings of characters, which docstrings have, as they stand."""
    lines[:] = KEPT_DOCSTRINGS.pop(name, lines)
    shown: list[str] = []
    was_verbatim = False
    for line in lines:
        is_table = line.startswith("|")
        is_verbatim = is_table or (line.startswith(" ") and (was_verbatim or "─" in line))
        if is_verbatim and not was_verbatim:
            shown += ["::", ""]
        shown.append(f"    {line}" if is_table else line)
        was_verbatim = is_verbatim
    lines[:] = shown


def _link_archive(_app: Sphinx, _name: str, lines: list[str]) -> None:
    """Offer pages of the archive, Markdown outside of `docs/`, as downloads: Sphinx makes no pages of them."""
    lines[0] = ARCHIVED.sub(r"](path:\1)", lines[0])


def _keep_units(_app: Sphinx, page: nodes.document) -> None:
    """Let no line end between a number and its `%` or `×`."""
    for text in list(page.findall(nodes.Text)):
        if not isinstance(text.parent, nodes.literal | nodes.literal_block):
            text.parent.replace(text, nodes.Text(UNIT.sub("\u00a0", text)))


def setup(app: Sphinx) -> None:
    """Connect to Sphinx."""
    app.connect("autodoc-process-signature", _shorten)
    app.connect("autodoc-process-docstring", _keep_docstring, priority=400)  # before Napoleon
    app.connect("autodoc-process-docstring", _markdown_to_rst)
    app.connect("source-read", _link_archive)
    app.connect("doctree-read", _keep_units)
