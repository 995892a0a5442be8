"""Find the uses of icons from known sets in code, with file and line.

Code is searched with regular expressions. Parsing is not necessary, because it suffices to find imports of components
and, line by line, classes, ids and names in quotes. Names are returned as written, such as `Trash2` for
`lucide:trash-2`; `icon_lookup.py` looks them up.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from grr_coca.common.errors import UserError
from grr_coca.common.files import read_errors
from grr_coca.data.walk import Exclusions, walk_visible
from grr_coca_icons.sources.iconify import known_prefixes

_SUFFIXES = """
js jsx ts tsx mjs cjs mts cts vue svelte astro html htm xhtml md mdx css scss sass less styl php twig blade erb haml
slim pug ejs hbs handlebars mustache liquid njk jinja jinja2 j2 django py rb go templ cs cshtml razor java jsp kt kts
dart swift ex exs heex eex leex rs elm clj cljs json jsonc yaml yml toml xml
"""
SUFFIXES = frozenset(_SUFFIXES.split())
"""Suffixes of code files that may show icons."""
_MAX_BYTES = 2_000_000
"""Maximum size of a code file, in bytes. Larger files are bundles and data."""
_NO_CODE = frozenset({"node_modules", "vendor", "dist", "build", "target", "__pycache__", "venv", "coverage"})


class Use(NamedTuple):
    """Use of an icon in code.

    Attributes:
        prefix: Prefix of the icon's set.
        name: Name as in the code.
        file, line: Location of the use.
    """

    prefix: str
    name: str
    file: str
    line: int

    @property
    def location(self) -> str:
        """File and line."""
        return f"{self.file}:{self.line}"


def find_uses(folder: str | Path, exclude: Sequence[str] = ()) -> list[Use]:
    """Find all uses of icons below a folder or in a file, by file and line.

    Raises:
        UserError: If the folder does not exist or has no known code file, or a file cannot be read.
    """
    root = Path(folder)
    if not root.exists():
        raise UserError(f"--used-in {folder}: no such file or folder")
    files = list(code_files(root, SUFFIXES, exclude))
    if not files:
        raise UserError(f"--used-in {folder}: no code file with a known suffix, such as .jsx, .vue, .html, .css or .py")
    return [use for path in files for use in uses_in(read_code(path), str(path))]


def code_files(root: Path, suffixes: frozenset[str], exclude: Sequence[str]) -> Iterator[Path]:
    """Yield the code files below a folder that have one of the given suffixes, or `root` itself if it is a file.

    Hidden files, minified and large files, folders of packages and build output, and files that match `exclude`
    (patterns as in .gitignore) are skipped.
    """
    if root.is_file():
        yield root
        return
    left_out = Exclusions(exclude)
    for folder, folders, names in walk_visible(root):
        folders[:] = [name for name in folders if name not in _NO_CODE]
        for name in names:
            path = Path(folder) / name
            if name.rpartition(".")[2].lower() in suffixes and ".min." not in name:
                inner = path.relative_to(root).as_posix()
                # A link may lead nowhere, and reading a named pipe could block forever.
                if not left_out.is_excluded(inner) and path.is_file() and path.stat().st_size <= _MAX_BYTES:
                    yield path


def read_code(path: Path) -> str:
    """Return the text of a code file. Bytes that are not UTF-8 become replacement characters.

    Raises:
        UserError: If the file cannot be read.
    """
    with read_errors(path):
        return path.read_text(encoding="utf-8", errors="replace")


def uses_in(text: str, file: str) -> Iterator[Use]:
    """Yield the uses of icons in the text of a file, in the order of lines.

    An icon is yielded once per line. The line of an imported component is that of its import.
    """
    found = {(use.line, use.prefix, use.name): None for _, use in _imports(text, file)}
    for number, line_text in enumerate(text.split("\n"), 1):
        for pattern, icon in _IN_LINE:
            for match in pattern.finditer(line_text):
                for prefix, name in icon(match):
                    found[number, prefix, name] = None
    for number, prefix, name in sorted(found):
        yield Use(prefix, name, file, number)


def components_in(text: str, file: str) -> dict[str, Use]:
    """Return the imported icons of a file by their local names, such as `Bin` in `import { Trash2 as Bin }`."""
    return dict(_imports(text, file))


def normalize_name(name: str) -> str:
    """Remove case and separators from a name: `trash-2` and `Trash2` both become `trash2`."""
    return re.sub(r"[\W_]+", "", name).lower()


# --- Imports of components

_IMPORT = re.compile(
    r"""import\s+(?:type\s+)?(?:(?P<default>[\w$]+)\s*,?\s*)?(?:\{(?P<names>[^{}]{0,20000})\}\s*)?from\s*
    ['"](?P<module>[^'"\n]+)['"]""",
    re.VERBOSE,
)

_COMMENT = re.compile(r"//[^\n]*|/\*.{0,500}?\*/", re.DOTALL)
"""Pattern of a comment among the names in an import. The length of comments is bounded, so that matching an
unterminated comment does not take long.
"""

Named = Iterable[tuple[str, str]]
"""Icons, each as the prefix of its set and its name in the set."""


def _trim(word: str, beginning: str = "", ending: str = "") -> str:
    """Remove a prefix and a suffix from a word, unless nothing would remain."""
    word = word.removeprefix(beginning) or word
    return word.removesuffix(ending) or word


def _lucide(name: str) -> Named:
    return [("lucide", _trim(name, "Lucide", "Icon"))]


def _material(name: str) -> Named:
    for ending, style in {"Outlined": "outline", "Rounded": "round", "Sharp": "sharp", "TwoTone": "twotone"}.items():
        if name.endswith(ending) and name != ending:
            return [("ic", f"{style}-{name.removesuffix(ending)}")]
    return [("ic", f"baseline-{name}")]


def _heroicons(module: str) -> Callable[[str], Named]:
    size = "".join(re.findall(r"/(16|20|24)/", f"{module}/")) or "24"
    is_solid = "solid" in module
    style = {"24": "solid" if is_solid else "", "20": "20-solid", "16": "16-solid"}[size]
    return lambda name: [("heroicons", f"{_trim(name, ending='Icon')}-{style}".rstrip("-"))]


_REACT_ICONS: dict[str, Callable[[str], Named]] = {
    "ai": lambda name: [
        ("ant-design", _style_last(name, {"Outline": "outlined", "Fill": "filled", "Twotone": "twotone"}))
    ],
    "bi": lambda name: [("bxs", name.removeprefix("Solid"))] if name.startswith("Solid") else [("bx", name)],
    "bs": lambda name: [("bi", _style_last(name, {"Fill": "fill"}))],
    "cg": lambda name: [("gg", name)],
    "fa": lambda name: [("fa-regular", name.removeprefix("Reg"))] if name.startswith("Reg") else [("fa-solid", name)],
    "fa6": lambda name: (
        [("fa6-regular", name.removeprefix("Reg"))] if name.startswith("Reg") else [("fa6-solid", name)]
    ),
    "fi": lambda name: [("feather", name)],
    "gi": lambda name: [("game-icons", name)],
    "hi": lambda name: [("heroicons-outline", name[7:]) if name.startswith("Outline") else ("heroicons-solid", name)],
    "hi2": lambda name: [("heroicons", _style_last(name, {"Outline": "", "Mini": "20-solid"}, "solid"))],
    "io5": lambda name: [("ion", _style_last(name, {"Outline": "outline", "Sharp": "sharp"}, at_end=True))],
    "lia": lambda name: [("la", name)],
    "lu": lambda name: [("lucide", name)],
    "md": lambda name: [("ic", f"outline-{name[7:]}" if name[:7] == "Outline" != name else f"baseline-{name}")],
    "pi": lambda name: [("ph", name)],
    "ri": lambda name: [("ri", name)],
    "rx": lambda name: [("radix-icons", name)],
    "si": lambda name: [("simple-icons", name)],
    "tb": lambda name: [("tabler", name)],
}
"""Functions from the components of react-icons to icons, by module name. A component is passed without the first
letters that all components of its module share, such as `Fa` in `FaTrash`."""


def _style_last(name: str, styles: dict[str, str], usual: str = "", at_end: bool = False) -> str:
    """Replace the style word of a component's name by Iconify's word, at the end of the name.

    Args:
        name: Name of the component, such as `OutlineHome`.
        styles: Style words of the components, and Iconify's words for them.
        usual: Iconify's word for names without a style word.
        at_end: Whether the style word is at the end of the component's name instead of its start.
    """
    for word, style in styles.items():
        if at_end and name.endswith(word) and name != word:
            return f"{name.removesuffix(word)}-{style}".rstrip("-")
        if not at_end and name.startswith(word) and name != word:
            return f"{name.removeprefix(word)}-{style}".rstrip("-")
    return f"{name}-{usual}".rstrip("-")


def _affixed_names(prefix: str, beginning: str = "", ending: str = "") -> Callable[[str], Callable[[str], Named]]:
    """Create a naming function for components whose names equal icon names except for a prefix and a suffix."""
    return lambda _: lambda name: [(prefix, _trim(name, beginning, ending))]


_MODULES = tuple(
    (re.compile(pattern), icon_of)
    for pattern, icon_of in (
        (r"@?lucide(?:[-/].*)?", lambda _: _lucide),
        (r"@tabler/icons-.*", _affixed_names("tabler", beginning="Icon")),
        (r"(?:@phosphor-icons/|phosphor-)\w+.*", _affixed_names("ph", "Ph", "Icon")),
        (r"@heroicons/\w+.*", _heroicons),
        (r"react-icons/\w+", lambda module: _of_react_icons(module.rpartition("/")[2])),
        (r"@fortawesome/free-solid-svg-icons.*", _affixed_names("fa6-solid", beginning="fa")),
        (r"@fortawesome/free-regular-svg-icons.*", _affixed_names("fa6-regular", beginning="fa")),
        (r"@fortawesome/free-brands-svg-icons.*", _affixed_names("fa6-brands", beginning="fa")),
        (
            r"@mui/icons-material|@material-ui/icons",
            lambda _: lambda name: _material(_trim(name, ending="Icon")),
        ),
        (r"@radix-ui/react-icons", _affixed_names("radix-icons", ending="Icon")),
        (r"@ant-design/icons.*", _affixed_names("ant-design")),
        (r"@remixicon/\w+", _affixed_names("ri", beginning="Ri")),
        (r"@carbon/icons-\w+.*", _affixed_names("carbon")),
        (r"react-bootstrap-icons", _affixed_names("bi")),
        (r"@mdi/(?:light-)?js", _affixed_names("mdi", beginning="mdi")),
        (r"ionicons/icons", _affixed_names("ion")),
        (r"hugeicons-react|@hugeicons/core-free-icons", _affixed_names("hugeicons", ending="Icon")),
        (r"react-feather|vue-feather-icons", _affixed_names("feather", ending="Icon")),
    )
)
"""Patterns of modules with icon components. For each, a function takes the module and returns a function from a
component to its icons."""

_DEFAULT_MODULES = (
    (re.compile(r"@mui/icons-material/(\w+)|@material-ui/icons/(\w+)"), _material),
    (re.compile(r"lucide-\w+/dist/esm/icons/([\w-]+?)(?:\.m?js)?"), _lucide),
    (re.compile(r"lucide-\w+/icons/([\w-]+)"), _lucide),
)
_VIRTUAL = re.compile(r"(?:~icons|@iconify-icons|@iconify/icons)/([a-z0-9-]+)/([\w-]+)")


def _of_react_icons(module: str) -> Callable[[str], Named]:
    named = _REACT_ICONS.get(module)

    def icon(name: str) -> Named:
        found = re.match(r"[A-Z][a-z]+(?=[A-Z0-9])", name)
        return [] if named is None or found is None else named(name[found.end() :])

    return icon


def _imports(text: str, file: str) -> Iterator[tuple[str, Use]]:
    """Yield the imported icons of a file, each with its name in the file."""
    for match in _IMPORT.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        for component, prefix, name in _icons_of_import(match["names"] or "", match["default"] or "", match["module"]):
            yield component, Use(prefix, name, file, line)


def _icons_of_import(names: str, default: str, module: str) -> Iterator[tuple[str, str, str]]:
    """Yield the local name, the prefix of the set and the name in the set of each icon that an import refers to.

    Args:
        names: Text between the braces of the import.
        default: Local name of the default import, or an empty string.
        module: Name of the module.
    """
    if default:
        yield from ((default, *named) for named in default_icons(module))
    icons_of = exported_icons(module)
    if icons_of is not None:
        for part in _COMMENT.sub(" ", names).split(","):
            name, *local = re.split(r"\s+as\s+", re.sub(r"^\s*type\s+", "", part.strip()))
            if re.fullmatch(r"[\w$]+", name):
                yield from ((local[0] if local else name, *named) for named in icons_of(name))


def default_icons(module: str) -> Named:
    """Return the icons that a module such as `~icons/lucide/trash` exports as its default, or no icons."""
    virtual = _VIRTUAL.match(module)
    if virtual is not None and virtual[1] in known_prefixes():
        return [(virtual[1], virtual[2])]
    found = ((pattern.fullmatch(module), icon) for pattern, icon in _DEFAULT_MODULES)
    return [one for match, icon in found if match for one in icon(next(group for group in match.groups() if group))]


_NO_COMPONENT = re.compile(
    r"\w+Props|[Ii]cons(?:List)?|(?:Lucide|Tabler|Dynamic)?Icon|LucideProvider|Icon(?:Type|Context|Base|Node|Tree)"
    r"|RemixiconComponentType|FontAwesomeIcon|(?:create|use)[A-Z]\w*|SSR"
)
"""Exports of icon packages that are types, helpers, or all icons together."""


def exported_icons(module: str) -> Callable[[str], Named] | None:
    """Return a function from a module's exports to its icons, or None if the module is not known to have icons."""
    for pattern, of_module in _MODULES:
        if pattern.fullmatch(module):
            icon_of = of_module(module)
            return lambda name: [] if _NO_COMPONENT.fullmatch(name) else icon_of(name)
    return None


# --- Classes, ids and names in quotes

_FONT_AWESOME = {
    **dict.fromkeys(("fa", "fas", "fa-solid"), "fa6-solid"),
    **dict.fromkeys(("far", "fa-regular"), "fa6-regular"),
    **dict.fromkeys(("fab", "fa-brands"), "fa6-brands"),
}
_NO_ICON = re.compile(r"fw|lg|xs|sm|xl|2xs|2xl|10x|[1-9]x|spin|pulse|border|inverse|stack|li|ul")
"""Classes of Font Awesome that are not icon names."""


def _font_awesome(match: re.Match[str]) -> Named:
    style = _FONT_AWESOME[match["style"]]
    names = re.findall(r"\bfa-([a-z0-9-]+)", match["rest"])
    return [(style, name) for name in names[:1] if not _NO_ICON.fullmatch(name) and f"fa-{name}" not in _FONT_AWESOME]


def class_prefix(written: str) -> str | None:
    """Return the set's prefix in a CSS class such as `i-lucide-x` or `i-mdi:home`, given the part after `i-`.

    The result is the longest prefix of a known set that matches, or None if no prefix matches.
    """
    dashed = written.replace(":", "-")
    return max((prefix for prefix in known_prefixes() if dashed.startswith(f"{prefix}-")), key=len, default=None)


def _unocss(match: re.Match[str]) -> Named:
    prefix = class_prefix(match["icon"])
    return [] if prefix is None else [(prefix, match["icon"].replace(":", "-").removeprefix(f"{prefix}-"))]


def _iconify(match: re.Match[str]) -> Named:
    return [(match["prefix"], match["icon"])] if match["prefix"] in known_prefixes() else []


_ICON = r"(?P<icon>[a-z0-9]+(?:-[a-z0-9]+)*)"
_FONT_CLASS = (
    r"(?<![\w-])(?P<style>fa[srb]?|fa-solid|fa-regular|fa-brands)\s+(?P<rest>fa-[a-z0-9-]+(?:\s+fa-[a-z0-9-]+)*)"
)
_LIGATURE = r"class(?:Name)?=[\"'][^\"']*\b{}\b[^\"']*[\"'][^<>]*>\s*(?P<icon>[a-z0-9_]+)\s*<"


def _font_class(names: str, start: str, icon: str = _ICON) -> str:
    """Return the pattern of the two classes of an icon font, such as `bi bi-house`."""
    return rf"(?<![\w-]){names}\s+{start}-{icon}"


_OF_ONE_SET = {
    "bi": (
        _font_class("bi", "bi"),
        rf"<sl-icon(?:-button)?[^<>]*\bname=['\"]{_ICON}['\"]",
        rf"bootstrap-icons\.svg#{_ICON}",
    ),
    "bx": (_font_class("bx", "bx"),),
    "bxs": (_font_class("bxs?", "bxs"),),
    "feather": (rf"data-feather=['\"]{_ICON}['\"]", rf"feather-sprite\.svg#{_ICON}"),
    "ion": (rf"<ion-icon[^<>]*\bname=['\"]{_ICON}['\"]",),
    "lucide": (rf"data-lucide=['\"]{_ICON}['\"]", rf"(?:lucide-sprite|lucide-static/sprite)\.svg#{_ICON}"),
    "material-symbols": (_LIGATURE.format("material-symbols-(?:outlined|rounded|sharp)"),),
    "mdi": (_font_class("mdi", "mdi"),),
    "ph": (_font_class("ph(?:-(?:bold|fill|light|thin|duotone))?", "ph"),),
    "ri": (r"(?<![\w-])ri-(?P<icon>[a-z0-9]+(?:-[a-z0-9]+)*-(?:line|fill))(?![\w-])",),
    "tabler": (_font_class("ti", "ti"), rf"tabler-sprite[\w-]*\.svg#(?:tabler-)?{_ICON}"),
}
"""Patterns within a line that identify icons of one set, by the set's prefix."""
_IN_LINE: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Named]], ...] = (
    (re.compile(rf"['\"`](?P<prefix>[a-z0-9]+(?:-[a-z0-9]+)*):{_ICON}['\"`]"), _iconify),
    (re.compile(r"icon-\[(?P<prefix>[a-z0-9-]+?)--(?P<icon>[a-z0-9-]+)\]"), _iconify),
    (re.compile(r"(?<![\w-])i-(?P<icon>[a-z0-9]+(?:[-:][a-z0-9]+)+)"), _unocss),
    (re.compile(_FONT_CLASS), _font_awesome),
    (re.compile(_LIGATURE.format("material-icons")), lambda match: [("ic", f"baseline-{match['icon']}")]),
    *(
        (re.compile(pattern), lambda match, prefix=prefix: [(prefix, match["icon"])])
        for prefix, patterns in _OF_ONE_SET.items()
        for pattern in patterns
    ),
)
"""Patterns within a line, each with a function from a match to its icons."""
