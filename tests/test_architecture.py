"""Packages import along their arrows, the core downward, and no files in a circle. See `docs/design.md`."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FILES = sorted(SRC.rglob("*.py"))

PACKAGES = {
    "grr_coca": set(),
    "grr_coca_search": {"grr_coca"},
    "grr_coca_serve": {"grr_coca", "grr_coca_search"},
    "grr_coca_icons": {"grr_coca", "grr_coca_search", "grr_coca_serve"},
    "grr_coca_open_clip": {"grr_coca"},
    "grr_coca_encoders": {"grr_coca"},
    "grr_coca_study": {"grr_coca", "grr_coca_search", "grr_coca_open_clip"},
}
"""The packages, and which others each may import. The core finds theirs by `grr_coca.common.plugins`."""
FOR_TYPES = {("grr_coca", "grr_coca_search")}
"""The one exception: `grr_coca.Index`, for type checkers only."""
ROOMS = ["common", "data", "model", "infer", "evaluate", "adapt", "train", "cli"]
"""The folders of the core, from the ground up: each imports from those before it only."""
FLOOR_OF: dict[str, float] = {room: floor for floor, room in enumerate(ROOMS)}
# The package itself, with its version and `load`, is under `cli`; the command as a process, over everything.
FLOOR_OF |= {"": FLOOR_OF["cli"] - 0.5, "__main__": len(ROOMS)}


def _package(module: str) -> str:
    return module.split(".")[0]


def _room(module: str) -> str:
    """`grr_coca.model.blocks` is in `model`."""
    return module.split(".")[1] if "." in module else ""


def _module(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _tree(source: str) -> ast.Module:
    return ast.parse(source)


@cache
def _nodes(source: str) -> tuple[ast.stmt, ...]:
    """The imports and classes of a file, inside functions too. Parsing all files takes a second."""
    return tuple(_statements(_tree(source).body))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef)):
            yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _statements(getattr(node, field, []))


def _imported(source: str) -> list[str]:
    """Modules of these packages that a file imports."""
    modules = []
    for node in _nodes(source):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            # `from grr_coca import data` names a room in its alias.
            parents = [node.module] if node.module != "grr_coca" else [f"grr_coca.{a.name}" for a in node.names]
            modules += [str(parent) for parent in parents]
    return [module for module in modules if _package(module) in PACKAGES]


def test_packages_import_only_along_the_arrows():
    found = {
        (path, _package(_module(path)), _package(module))
        for path in FILES
        for module in _imported(path.read_text(encoding="utf-8"))
    }
    wrong = {(path, package, other) for path, package, other in found if other not in PACKAGES[package] | {package}}
    assert {(package, other) for _, package, other in wrong} == FOR_TYPES
    assert {path.relative_to(SRC).as_posix() for path, _, _ in wrong} == {"grr_coca/__init__.py"}


def test_core_imports_downward_only():
    core = [path for path in FILES if _package(_module(path)) == "grr_coca"]
    upward = [
        f"{path.relative_to(SRC)} may not import '{other}'"
        for path in core
        for room in [_room(_module(path))]
        for other in {
            _room(module) for module in _imported(path.read_text(encoding="utf-8")) if _package(module) == "grr_coca"
        }
        - {room}
        if FLOOR_OF[other] >= FLOOR_OF[room]
    ]
    assert upward == []


def test_source_has_these_packages_and_layers():
    assert {path.relative_to(SRC).parts[0] for path in FILES} == set(PACKAGES)
    core = {path.relative_to(SRC / "grr_coca").parts[0] for path in (SRC / "grr_coca").rglob("*.py")}
    assert core == {*ROOMS, "__init__.py", "__main__.py"}, f"see ROOMS in {Path(__file__).name}"


def test_check_detects_a_wrong_arrow():
    source = "def f():\n    from grr_coca_serve.site import Library\nimport grr_coca_icons.svg\nimport numpy\n"
    assert sorted(_imported(source)) == ["grr_coca_icons.svg", "grr_coca_serve.site"]
    assert "grr_coca_serve" not in PACKAGES["grr_coca_search"]


def _graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """The files that each file imports, late imports included, by module."""
    return {
        module: {name if name in sources else name.rpartition(".")[0] for name in _names(source)}
        & sources.keys() - {module}
        for module, source in sources.items()
    }


def _names(source: str) -> set[str]:
    """Modules that a file imports, and what it takes from them, since `from grr_coca.data import order` is a module."""
    nodes = [node for node in _nodes(source) if isinstance(node, ast.ImportFrom)]
    return {*_imported(source), *(f"{node.module}.{alias.name}" for node in nodes for alias in node.names)}


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one file."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for other in graph[waiting.pop()] - found:
                found.add(other)
                waiting.append(other)
        return found

    reach = {module: reached(module) for module in graph}
    circles = {frozenset(other for other in reach[module] if module in reach[other]) for module in graph}
    return sorted(sorted(circle) for circle in circles if circle)


def test_no_files_import_each_other_in_a_cycle():
    sources = {_module(path): path.read_text(encoding="utf-8") for path in FILES}
    # The package and `__init__` files hand names on from below, by late imports: whoever imports them imports the file.
    assert _circles(_graph(sources)) == []


def test_cycle_of_lazy_imports_is_detected():
    sources = {
        "grr_coca.a": "from grr_coca.b import f",
        "grr_coca.b": "def f():\n    from grr_coca import c",
        "grr_coca.c": "import grr_coca.a",
        "grr_coca.d": "from grr_coca.a import x",
    }
    assert _circles(_graph(sources)) == [["grr_coca.a", "grr_coca.b", "grr_coca.c"]]


def test_upward_import_is_detected():
    source = "import grr_coca.cli\ndef f():\n    from grr_coca.train.loop import train\nfrom grr_coca import data\n"
    assert _imported(source) == ["grr_coca.cli", "grr_coca.train.loop", "grr_coca.data"]
    assert FLOOR_OF[_room("grr_coca.train.loop")] > FLOOR_OF[_room("grr_coca.model.build")]


def test_no_two_files_of_tests_have_one_name():
    """pytest imports each by its name alone, and refuses the second."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


# --- Arguments

MOST_POSITIONAL = 5
OF_RANKS = {"grr_coca/model/losses.py: Losses", "grr_coca/model/losses.py: EmbeddedPairs"}
"""Tuples that ranks add up or gather as a whole."""


def _positional_of_constructor(node: ast.ClassDef) -> int:
    """How many arguments the constructor that a class writes down, or is given as a dataclass, takes by position."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return len(item.args.posonlyargs + item.args.args) - 1  # self
    is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    is_named_tuple = any("NamedTuple" in ast.unparse(base) for base in node.bases)
    if not (is_dataclass or is_named_tuple) or any("kw_only=True" in ast.unparse(d) for d in node.decorator_list):
        return 0
    fields = [ast.unparse(item.annotation) for item in node.body if isinstance(item, ast.AnnAssign)]
    return fields.index("KW_ONLY") if "KW_ONLY" in fields else len(fields)


def _classes(source: str) -> list[ast.ClassDef]:
    return [node for node in _nodes(source) if isinstance(node, ast.ClassDef)]


def test_constructors_take_five_arguments_by_position_at_most():
    counts = {
        f"{path.relative_to(SRC).as_posix()}: {node.name}": _positional_of_constructor(node)
        for path in FILES
        for node in _classes(path.read_text(encoding="utf-8"))
    }
    assert {name for name, count in counts.items() if count > MOST_POSITIONAL} == OF_RANKS


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("class A:\n    def __init__(self, a, b=1, *, c=2): ...", 2),
        ("class A:\n    def __init__(self, a, /, *b): ...", 1),
        ("@dataclass(frozen=True)\nclass A:\n    a: int\n    b: int = 0\n    def f(self, c): ...", 2),
        ("@dataclass(frozen=True, kw_only=True)\nclass A:\n    a: int", 0),
        ("@dataclass\nclass A:\n    a: int\n    _: KW_ONLY\n    b: int", 1),
        ("class A(NamedTuple):\n    a: int\n    b: int", 2),
        ("class A:\n    a: int", 0),
    ],
)
def test_arguments_by_position_are_counted(source, count):
    assert [_positional_of_constructor(node) for node in _classes(source)] == [count]


ONE_NAME_OF_MANY = {"run", "main", "load"}
"""A verb's function, the two entrances, and `load`, which the package hands on from `inference`."""


def test_one_name_means_one_thing():
    names = [
        node.name
        for path in FILES
        for node in _tree(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    assert {name for name in names if names.count(name) > 1} <= ONE_NAME_OF_MANY
