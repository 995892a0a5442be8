"""Rewrite the icons in one code file. All other characters are unchanged.

Code is parsed by tree-sitter grammars (package ast-grep-py): JavaScript and TypeScript with JSX, Vue components, HTML,
CSS, JSON and YAML. The following are rewritten:

- imports of components, elements of JSX and Vue templates, and all other uses of an imported component;
- properties with different names in the two packages (`strokeWidth`, and `stroke` in tabler), and types (`LucideIcon`);
- names in complete strings (`"lucide:trash-2"`) and in classes (`i-lucide-trash-2`, `icon-[lucide--trash-2]`).

If a component's new name is already taken in the file, the component is imported under its old name (`import { HomeIcon
as Home }`).
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from typing import NamedTuple

from ast_grep_py import SgNode, SgRoot

from grr_coca_icons.codemod.packages import Component, IconPackage, package_for, package_of, pascal
from grr_coca_icons.match.used_icons import class_prefix, default_icons, exported_icons, normalize_name

SCRIPTS = {
    **dict.fromkeys(("js", "jsx", "mjs", "cjs"), "javascript"),
    **dict.fromkeys(("ts", "mts", "cts"), "typescript"),
    "tsx": "tsx",
}
"""Grammar of each kind of script, by file suffix."""
_PAGES = frozenset({"vue", "html", "htm", "svelte", "astro"})
_GRAMMARS = {**SCRIPTS, **dict.fromkeys(_PAGES, "html"), "json": "json", "css": "css", "yaml": "yaml", "yml": "yaml"}
SUFFIXES = frozenset(_GRAMMARS)
"""Suffixes of files that can be rewritten."""


class Replacements:
    """Table of the icons to replace, each with its replacement.

    Args:
        icons: Full name of the replacement of each icon, by the icon's prefix and name.
        partial: Prefixes of sets some of whose icons remain in the code, so that the types of these sets also remain.
    """

    def __init__(self, icons: "dict[tuple[str, str], str]", partial: "frozenset[str]" = frozenset()) -> None:
        self._icons = {(prefix, normalize_name(name)): other for (prefix, name), other in icons.items()}
        self.partial = partial
        self.target_prefixes = tuple(dict.fromkeys(other.partition(":")[0] for other in icons.values()))

    def of(self, prefix: str, name: str) -> tuple[str, str] | None:
        """Return the prefix and name of an icon's replacement, or None if the icon is not replaced."""
        other = self._icons.get((prefix, normalize_name(name)))
        if other is None:
            return None
        first, _, last = other.partition(":")
        return first, last


class Note(NamedTuple):
    """Note on manual work: the line in the new text, and a description."""

    line: int
    text: str


class RewriteResult(NamedTuple):
    """Text of a file with replaced icons, and the remaining manual work."""

    text: str
    notes: list[Note]


class ParseError(ValueError):
    """A script has a syntax error."""


def rewrite(text: str, suffix: str, icons: Replacements) -> RewriteResult:
    """Replace the icons in the text of a file.

    Args:
        text: Text of the file, with its line ends.
        suffix: Suffix of the file name, without the dot, one of `SUFFIXES`.
        icons: Icons to replace.

    Raises:
        ParseError: If a script has a syntax error.
    """
    return _FileRewriter(text, suffix, icons).rewritten()


@dataclass(kw_only=True)
class _Import:
    """Imported or re-exported name of a replaced icon, or of a type of its package.

    Attributes:
        node: Import or export specifier, or the name in a default import.
        statement: Import or export statement.
        imported, local: Name in the module, and name in the file.
        source, target: Package of the old icon, and package of its replacement.
        component: New component or type. None if the import is a type that the new package does not have.
        new_local: New name in the file.
        is_shadowed: Whether the file also binds the old name to something else.
    """

    node: SgNode
    statement: SgNode
    imported: str
    local: str
    source: IconPackage
    target: IconPackage
    component: Component | None
    new_local: str = ""
    is_shadowed: bool = False

    @property
    def new_name(self) -> str:
        assert self.component is not None
        return self.component.name


@dataclass(frozen=True)
class _ParsedPart:
    """Part of a file that is parsed separately: its syntax tree, and its start in the file."""

    root: SgNode
    start: int
    grammar: str
    is_script: bool = True

    def find_all(self, *kinds: str) -> list[SgNode]:
        """Return all nodes of the given kinds, in the order of the text."""
        known = _supported_kinds(self.grammar, kinds)
        return self.root.find_all(any=[{"kind": kind} for kind in known]) if known else []

    def span(self, node: SgNode) -> tuple[int, int]:
        """Return the start and end of a node in the file."""
        span = node.range()
        return self.start + span.start.index, self.start + span.end.index


@lru_cache
def _supported_kinds(grammar: str, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Return the given node kinds that a grammar has, because searching for unknown kinds is an error."""
    empty = SgRoot("", grammar).root()

    def is_known(kind: str) -> bool:
        try:
            empty.find(kind=kind)
        except RuntimeError:
            return False
        return True

    return tuple(filter(is_known, kinds))


class _FileRewriter:
    """Rewriter of one file: collects edits of its text, and applies them in `rewritten`.

    Attributes:
        edits: Replacement texts, by start and end of the text that they replace.
        notes: Positions and descriptions of manual work.
        present: Names that the file already imports from the new package.
    """

    def __init__(self, text: str, suffix: str, icons: Replacements) -> None:
        self.text, self.suffix, self.icons = text, suffix, icons
        self.edits: dict[tuple[int, int], str] = {}
        self.notes: list[tuple[int, str]] = []
        self.present: set[str] = set()

    def rewritten(self) -> RewriteResult:
        grammar = _GRAMMARS[self.suffix]
        root = SgRoot(self.text, grammar).root()
        if grammar in ("html", "css", "json", "yaml"):
            self._rewrite_strings(_ParsedPart(root, 0, grammar))
        if self.suffix in SCRIPTS:
            self._rewrite_code([_ParsedPart(root, 0, grammar)], None)
        elif self.suffix == "vue":
            self._rewrite_code(list(_vue_parts(root)), root)
        pieces, at, moved = [], 0, []
        for (start, end), new in sorted(self.edits.items()):
            if start < at:  # inside a part that is replaced completely
                continue
            pieces += [self.text[at:start], new]
            at = end
            moved.append((end, new.count("\n") - self.text.count("\n", start, end)))
        lines = {
            Note(self.text.count("\n", 0, place) + 1 + sum(lines for end, lines in moved if end <= place), text)
            for place, text in self.notes
        }
        return RewriteResult("".join([*pieces, self.text[at:]]), sorted(lines))

    def _edit(self, start: int, end: int, new: str) -> None:
        if self.text[start:end] != new:
            self.edits[start, end] = new

    def _replace(self, part: _ParsedPart, node: SgNode, new: str) -> None:
        self._edit(*part.span(node), new)

    def _note(self, part: _ParsedPart, node: SgNode, text: str) -> None:
        self.notes.append((part.span(node)[0], text))

    # --- Names in strings

    def _rewrite_strings(self, part: _ParsedPart) -> None:
        for node in part.find_all(*_STRING_KINDS):
            start, text = part.span(node)[0], node.text()
            for begin, end, new in _names_in_string(text, self.icons):
                if not (_is_interpolated(node) and (begin == 0 or end == len(text))):
                    self._edit(start + begin, start + end, new)

    # --- Components

    def _rewrite_code(self, parts: list[_ParsedPart], page: SgNode | None) -> None:
        for part in parts:
            if page is None and any(not _is_ampersand(one) for one in part.root.find_all(kind="ERROR")):
                raise ParseError("a syntax error")
            self._rewrite_strings(part)
        found = [(part, one) for part in parts if part.is_script for one in self._imports(part)]
        if not found:
            return
        self._choose_names(parts, [one for _, one in found], page)
        by_local = {one.local: one for _, one in found}
        for part in parts:
            self._rewrite_uses(part, by_local, is_vue=page is not None)
            for element in _jsx_elements(part):
                self._rewrite_element(part, element, by_local)
        if page is not None:
            for tag in _tags(page):
                self._rewrite_element(_ParsedPart(page, 0, "html"), tag, by_local)
        bound = set(self.present)
        for _, group in groupby(found, lambda pair: pair[0].span(pair[1].statement)):
            (part, first), *others = group
            self._rewrite_import(part, [first, *(one for _, one in others)], bound)

    def _imports(self, part: _ParsedPart) -> Iterator[_Import]:
        """Yield the imports and re-exports to replace. Default imports from `~icons/` are rewritten directly."""
        for statement in part.find_all("import_statement", "export_statement"):
            origin = statement.field("source")
            if origin is None:
                continue
            module = origin.text()[1:-1]
            yield from self._default_imports(part, statement, module)
            source = package_of(module)
            if source is None:
                continue
            of_sets = (package_for(prefix, source.framework) for prefix in self.icons.target_prefixes)
            target = next((one for one in of_sets if one is not None), None)
            if target is not None:
                yield from self._named_imports(part, statement, module, source, target)

    def _default_imports(self, part: _ParsedPart, statement: SgNode, module: str) -> Iterator[_Import]:
        """Yield the default import of a statement if its icon is replaced.

        `import Trash from "lucide-react/icons/trash"` becomes a named import. A default import from `~icons/` remains a
        default import: its module is rewritten, and nothing is yielded. An import of an entire module with icons gets a
        note.
        """
        clause = next((one for one in statement.children() if one.kind() == "import_clause"), None)
        local = clause.child(0) if clause is not None else None
        if clause is None or local is None or local.kind() != "identifier":
            if clause is not None and local is not None and local.kind() == "namespace_import":
                source = package_of(module)
                if source is not None and exported_icons(module) is not None:
                    self._note(part, statement, f"the whole module {module} is imported")
            return
        for prefix, name in default_icons(module):
            new = self.icons.of(prefix, name)
            source = package_of(module)
            if new is None:
                continue
            if module.startswith("~icons/"):
                origin = statement.field("source")
                assert origin is not None
                quote = origin.text()[0]
                rest = module.removeprefix("~icons/").partition("?")
                self._replace(part, origin, f"{quote}~icons/{new[0]}/{new[1]}{rest[1]}{rest[2]}{quote}")
            elif source is not None and (target := package_for(new[0], source.framework)) is not None:
                name = local.text()
                add = partial(_Import, node=local, statement=statement, imported=name, local=name)
                yield add(source=source, target=target, component=target.component(*new))

    def _named_imports(
        self, part: _ParsedPart, statement: SgNode, module: str, source: IconPackage, target: IconPackage
    ) -> Iterator[_Import]:
        named = exported_icons(module)
        for node in statement.find_all(any=[{"kind": "import_specifier"}, {"kind": "export_specifier"}]):
            name, alias = node.field("name"), node.field("alias")
            assert name is not None
            local = (alias or name).text()
            add = partial(_Import, node=node, statement=statement, imported=name.text(), local=local, source=source)
            types = {source.component_type: target.component_type, source.properties_type: target.properties_type}
            if name.text() in types:
                if target.name != source.name and self.icons.partial.isdisjoint(source.prefixes):
                    new_type = types[name.text()]
                    yield add(target=target, component=Component(target.name, new_type) if new_type else None)
                continue
            found = list(named(name.text())) if named is not None else []
            new = next((new for one in found if (new := self.icons.of(*one))), None)
            if new is not None and (of_set := package_for(new[0], source.framework)) is not None:
                yield add(target=of_set, component=of_set.component(*new))
            if not found and named is not None:
                self._note(part, node, f"{name.text()} of {module} is not an icon")

    def _choose_names(self, parts: Sequence[_ParsedPart], imports: list[_Import], page: SgNode | None) -> None:
        """Choose the name that each new component has in the file.

        This sets `self.present`, and `new_local` and `is_shadowed` of each import.
        """
        leaving = {one.local for one in imports}
        components = [one.component for one in imports if one.component is not None]
        modules = {component.module for component in components}
        self.present = {name for part in parts for name in _imported_from(part.root, modules)} - leaving
        bound: dict[str, int] = defaultdict(int)
        taken: set[str] = set()
        for part in parts:
            for node in part.find_all(*_NAME_KINDS):
                if node.text() in self.present:
                    bound[node.text()] += _is_binding(node)
                elif node.text() not in leaving:
                    taken.add(node.text())
                elif _is_binding(node):
                    bound[node.text()] += 1
        if page is not None:
            taken |= {pascal(tag.text()) for tag in page.find_all(kind="tag_name")} - leaving
        chosen: dict[str, str] = {}
        for one in imports:
            if one.component is None:
                continue
            is_export = one.statement.kind() == "export_statement"
            one.is_shadowed = bound[one.local] > 0
            is_renamed = one.imported != one.local
            new = one.component.name
            is_same = chosen.get(new, one.component.module) == one.component.module
            if is_export or is_renamed or one.is_shadowed or bound[new] or new in taken or not is_same:
                fallback = one.local
                if one.component.name in (one.target.component_type, one.target.properties_type) and not is_export:
                    fallback = one.local if is_renamed else f"{one.target.type_prefix}{new}"
                    fallback = one.local if fallback in taken else fallback
                one.new_local = fallback
            else:
                one.new_local = new
            chosen[one.new_local] = one.component.module

    def _rewrite_uses(self, part: _ParsedPart, imports: dict[str, _Import], *, is_vue: bool) -> None:
        for node in part.find_all(*_NAME_KINDS):
            one = imports.get(node.text())
            if one is None or _is_of_import(node):
                continue
            if one.component is None:  # a type that the new package does not have
                self._replace(part, node, _type_of(one))
            elif one.new_local != one.local and (
                (node.kind() == "type_identifier") == _is_type(one) or node.inside(kind="export_specifier")
            ):
                self._replace(part, node, self._text_of_use(node, one, is_vue=is_vue))
            if one.component is not None and one.component.properties and not _is_element(node):
                needed = ", ".join(f'{key}="{value}"' for key, value in one.component.properties.items())
                self._note(part, node, f"{one.new_local} needs {needed}")

    def _text_of_use(self, node: SgNode, one: _Import, *, is_vue: bool) -> str:
        parent = node.parent()
        if node.kind() == "shorthand_property_identifier":
            pair = parent.parent() if parent is not None else None
            key = pair.field("key") if pair is not None and pair.kind() == "pair" else None
            if is_vue and key is not None and key.text() == "components":
                return one.new_local
            return f"{one.local}: {one.new_local}"
        if parent is not None and parent.kind() == "export_specifier" and parent.field("alias") is None:
            return f"{one.new_local} as {one.local}"
        return one.new_local

    # --- Elements

    def _rewrite_element(self, part: _ParsedPart, element: "_Element", imports: dict[str, _Import]) -> None:
        one = imports.get(element.component)
        if one is None or one.component is None or _is_type(one):
            return
        if element.is_tag and one.new_local != one.local:
            for name in element.names:
                is_dashed = name.text() != pascal(name.text())
                self._replace(part, name, _kebab_case(one.new_local) if is_dashed else one.new_local)
        changed, added = list(_changed_properties(element, one)), list(_added_properties(element, one))
        if one.is_shadowed:
            if changed or added:
                self._note(
                    part,
                    element.names[0],
                    f"{one.local} has several meanings in this file: its properties are not changed",
                )
            return
        for attribute, new in changed:
            start, end = part.span(attribute)
            if not new:  # also remove the space before it
                start = len(self.text[:start].rstrip())
            self._edit(start, end, new)
        if added:
            start, end = part.span(element.names[0])
            written = self.edits.pop((start, end), self.text[start:end])
            self._edit(start, end, " ".join([written, *added]))

    # --- Statements

    def _rewrite_import(self, part: _ParsedPart, imports: list[_Import], bound: set[str]) -> None:
        """Rewrite an import or re-export.

        A statement whose names all move to one module is edited in place. Otherwise, one statement for each new module
        replaces it or, if other names remain in it, follows it. Names in `bound` are already imported, so they are not
        imported again, and the new names are added to `bound`.
        """
        statement = imports[0].statement
        origin = statement.field("source")
        assert origin is not None
        quote = origin.text()[0]
        specifiers: dict[str, dict[str, None]] = defaultdict(dict)
        written: dict[int, str] = {}
        for one in imports:
            place = one.node.range().start.index
            if one.component is None or one.new_local in bound:
                written[place] = ""
                continue
            new = one.new_name if one.new_name == one.new_local else f"{one.new_name} as {one.new_local}"
            inner = "type " if one.node.text().startswith("type ") else ""
            if one.statement.kind() == "import_statement":
                bound.add(one.new_local)
            written[place] = f"{inner}{new}"
            specifiers[one.component.module][f"{inner}{new}"] = None
        named = statement.find_all(any=[{"kind": "import_specifier"}, {"kind": "export_specifier"}])
        clause = statement.find(any=[{"kind": "named_imports"}, {"kind": "export_clause"}])
        is_whole = clause is not None and len(written) == len(named) and not _has_default(statement)
        if is_whole and len(specifiers) == 1:
            self._replace(part, origin, f"{quote}{next(iter(specifiers))}{quote}")
            for node in named:
                new = written[node.range().start.index]
                if new:
                    self._replace(part, node, new)
            self._remove_specifiers(part, [node for node in named if not written[node.range().start.index]], named)
            return
        keyword = re.match(r"(?:import|export)(?:\s+type)?\b", statement.text())
        assert keyword is not None
        end = ";" if statement.text().rstrip().endswith(";") else ""
        lines = [
            f"{keyword[0]} {{ {', '.join(names)} }} from {quote}{module}{quote}{end}"
            for module, names in specifiers.items()
        ]
        start, after = part.span(statement)
        line_start = self.text.rfind("\n", 0, start) + 1
        indent = self.text[line_start:start] if not self.text[line_start:start].strip() else ""
        newline = "\r\n" if "\r\n" in self.text else "\n"
        if is_whole or imports[0].node.kind() == "identifier":
            text = (newline + indent).join(lines)
            if lines:
                self._replace(part, statement, text)
            else:
                rest = re.compile(r"[ \t]*\r?\n").match(self.text, after)
                self._edit(line_start, rest.end() if rest else after, "")
            return
        self._remove_specifiers(part, [one.node for one in imports], named)
        if lines:
            self._edit(after, after, "".join(f"{newline}{indent}{line}" for line in lines))

    def _remove_specifiers(self, part: _ParsedPart, dropped: Sequence[SgNode], named: Sequence[SgNode]) -> None:
        """Remove specifiers together with the following comma or, for the last one, the preceding comma."""
        spans = [part.span(node) for node in dropped]
        kept_end: int | None = None
        for node, following in zip(named, [*named[1:], None], strict=True):
            start, end = part.span(node)
            if (start, end) not in spans:
                kept_end = end
            elif following is not None:
                self._edit(start, part.span(following)[0], "")
            elif kept_end is not None:
                # Dropped specifiers directly before this one have edits that end at its start. This edit replaces them.
                self.edits = {span: new for span, new in self.edits.items() if not kept_end <= span[0] < end}
                self._edit(kept_end, end, "")


def _is_ampersand(error: SgNode) -> bool:
    """Return whether the node is an `&` in JSX text, which React accepts but the grammar does not."""
    return re.fullmatch(r"&[^<>{}]*", error.text()) is not None


# --- Strings

_STRING_KINDS = (
    "string_fragment",  # JavaScript
    "attribute_value",  # HTML; UnoCSS also accepts attribute names
    "attribute_name",
    "plain_value",  # CSS: @apply
    "keyword_query",
    "string_content",  # JSON
    "plain_scalar",  # YAML
    "double_quote_scalar",
    "single_quote_scalar",
)
_FULL_NAME = re.compile(r"(['\"]?)@?(?P<prefix>[a-z0-9]+(?:-[a-z0-9]+)*):(?P<icon>[a-z0-9]+(?:-[a-z0-9]+)*)\1")
_CLASS = re.compile(
    r"(?<![\w-])i-(?P<icon>[a-z0-9]+(?:[-:][a-z0-9]+)+)(?![\w-])"
    r"|(?<![\w-])icon-\[(?P<prefix>[a-z0-9-]+?)--(?P<name>[a-z0-9-]+)\]"
)


def _names_in_string(text: str, icons: Replacements) -> Iterator[tuple[int, int, str]]:
    """Yield the names to replace in a string, each with its start, its end and the new name."""
    whole = _FULL_NAME.fullmatch(text)
    if whole is not None and (new := icons.of(whole["prefix"], whole["icon"])) is not None:
        yield whole.start("prefix"), whole.end("icon"), ":".join(new)
    for match in _CLASS.finditer(text):
        if match["name"]:
            new, group, between = icons.of(match["prefix"], match["name"]), ("prefix", "name"), "--"
        else:
            written = match["icon"]
            prefix = class_prefix(written)
            new = icons.of(prefix, written[len(prefix) + 1 :]) if prefix else None
            group, between = ("icon", "icon"), written[len(prefix or "")]
        if new is not None:
            yield match.start(group[0]), match.end(group[1]), between.join(new)


def _is_interpolated(node: SgNode) -> bool:
    """Return whether a node is a part of a template string with substitutions, in which a name may continue."""
    parent = node.parent()
    return parent is not None and parent.kind() == "template_string" and len(parent.named_children()) > 1


# --- Names

_NAME_KINDS = (
    "identifier",
    "type_identifier",
    "shorthand_property_identifier",
    "shorthand_property_identifier_pattern",
)
_BINDINGS = {
    "variable_declarator": "name",
    "required_parameter": "pattern",
    "optional_parameter": "pattern",
    "function_declaration": "name",
    "function_expression": "name",
    "class_declaration": "name",
    "enum_declaration": "name",
    "interface_declaration": "name",
    "type_alias_declaration": "name",
    "type_parameter": "name",
    "arrow_function": "parameter",
    "catch_clause": "parameter",
    "assignment_pattern": "left",
    "pair_pattern": "value",
    "for_in_statement": "left",
    "internal_module": "name",
}
"""Nodes that bind a name, and the field that contains the name."""
_ALWAYS_BINDINGS = frozenset({"array_pattern", "rest_pattern", "formal_parameters"})


def _is_binding(node: SgNode) -> bool:
    """Return whether this node binds a name to something else, for example as a variable or parameter."""
    parent = node.parent()
    if node.kind() == "shorthand_property_identifier_pattern":
        return True
    if parent is None:
        return False
    if parent.kind() in _ALWAYS_BINDINGS:
        return True
    bound = parent.field(_BINDINGS[parent.kind()]) if parent.kind() in _BINDINGS else None
    return bound is not None and _is_same(bound, node)


def _is_same(one: SgNode, other: SgNode) -> bool:
    return one.range().start.index == other.range().start.index and one.range().end.index == other.range().end.index


def _is_of_import(node: SgNode) -> bool:
    """Return whether a name is in an import or a re-export, or is the name under which something is exported."""
    parent = node.parent()
    if parent is None or parent.kind() not in ("import_specifier", "import_clause", "export_specifier"):
        return False
    if parent.kind() != "export_specifier":
        return True
    alias = parent.field("alias")
    if alias is not None and _is_same(alias, node):
        return True
    return any(one.kind() == "export_statement" and one.field("source") is not None for one in parent.ancestors())


def _is_element(node: SgNode) -> bool:
    parent = node.parent()
    return parent is not None and parent.kind().startswith("jsx_") and parent.kind().endswith("_element")


def _imported_from(root: SgNode, modules: Collection[str]) -> Iterator[str]:
    """Yield the names that a script imports from the given modules without renaming them."""
    for statement in root.find_all(kind="import_statement"):
        origin = statement.field("source")
        if origin is not None and origin.text()[1:-1] in modules:
            for node in statement.find_all(kind="import_specifier"):
                name = node.field("name")
                if name is not None and node.field("alias") is None:
                    yield name.text()


def _is_type(one: _Import) -> bool:
    return one.imported in (one.source.component_type, one.source.properties_type)


def _type_of(one: _Import) -> str:
    """Return the framework's type for components or for their properties, in place of a type that the new package does
    not export.
    """
    if one.target.framework == "vue":
        is_component = one.imported == one.source.component_type
        return 'import("vue").FunctionalComponent' if is_component else 'import("vue").SVGAttributes'
    properties = 'import("react").SVGProps<SVGSVGElement>'
    return f'import("react").ComponentType<{properties}>' if one.imported == one.source.component_type else properties


def _has_default(statement: SgNode) -> bool:
    clause = next((one for one in statement.children() if one.kind() == "import_clause"), None)
    return clause is not None and any(one.kind() != "named_imports" for one in clause.named_children())


def _kebab_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


# --- Elements


class _Attribute(NamedTuple):
    """Attribute of an element.

    Attributes:
        node: Syntax node of the attribute.
        name: Name, spelled as in JSX.
        written: Name, spelled as in the code.
        value: Value with its quotes or braces. Empty if the attribute has no value.
        is_bound: Whether the value may be an expression: always in JSX; in Vue, only in a binding such as `:size`.
    """

    node: SgNode
    name: str
    written: str
    value: str
    is_bound: bool

    @property
    def is_text_of_digits(self) -> bool:
        """Whether the value is a text of digits, as in `size="24"` in a Vue template."""
        return not self.is_bound and re.fullmatch(r"[\"']?\d+[\"']?", self.value) is not None


class _Element(NamedTuple):
    """Element that shows an icon.

    Attributes:
        component: Name of its component, as imported in this file.
        names: Nodes with its name: one in its start tag and, in a Vue template, one in its end tag if there is one.
        attributes: Its attributes, in order.
        has_spread: Whether it also has attributes from an object (`{...props}` or `v-bind="props"`).
        is_tag: Whether the element is in a Vue template.
    """

    component: str
    names: list[SgNode]
    attributes: list[_Attribute]
    has_spread: bool
    is_tag: bool


def _jsx_elements(part: _ParsedPart) -> Iterator[_Element]:
    for node in part.find_all("jsx_opening_element", "jsx_self_closing_element"):
        name = node.field("name")
        if name is None or name.kind() != "identifier":
            continue
        attributes = []
        for child in node.named_children():
            if child.kind() == "jsx_attribute":
                parts = child.named_children()
                value = parts[1].text() if len(parts) > 1 else ""
                attributes.append(_Attribute(child, parts[0].text(), parts[0].text(), value, True))
        has_spread = any(child.kind() == "jsx_expression" for child in node.named_children())
        yield _Element(name.text(), [name], attributes, has_spread, False)


def _tags(page: SgNode) -> Iterator[_Element]:
    """Yield the elements of a Vue template."""
    for node in page.find_all(any=[{"kind": "start_tag"}, {"kind": "self_closing_tag"}]):
        name = node.find(kind="tag_name")
        if name is None:
            continue
        attributes = []
        for child in node.named_children():
            if child.kind() == "attribute":
                written = child.named_children()[0].text()
                value = child.named_children()[1].text() if len(child.named_children()) > 1 else ""
                bare = re.sub(r"^(?::|v-bind:)", "", written)
                own = pascal(bare)
                attributes.append(_Attribute(child, own[:1].lower() + own[1:], written, value, bare != written))
        parent = node.parent()
        end = next((one for one in parent.children() if one.kind() == "end_tag"), None) if parent is not None else None
        last = end.find(kind="tag_name") if end is not None and node.kind() == "start_tag" else None
        has_spread = any(attribute.written == "v-bind" for attribute in attributes)
        yield _Element(pascal(name.text()), [name, *([last] if last else [])], attributes, has_spread, True)


def _changed_properties(element: _Element, one: _Import) -> Iterator[tuple[SgNode, str]]:
    """Yield the properties that differ between the packages, each with its replacement.

    The replacement is empty if the property is removed.
    """
    source, target = one.source, one.target
    if source.name == target.name:
        return
    for attribute in element.attributes:
        new: str | None = None
        if attribute.name in ("strokeWidth", source.stroke) and attribute.name:
            new = target.stroke
        elif attribute.name in source.own - target.own:
            new = ""
        elif attribute.name == "size" and source.has_size and not target.has_size:
            yield attribute.node, " ".join(_renamed_property(attribute, side, element) for side in ("width", "height"))
        elif attribute.name == "size" and target.is_size_number and attribute.is_text_of_digits:
            yield attribute.node, f":size={attribute.value}"
        elif attribute.name == "width" and "width" in target.refused:
            new = "size"
        elif attribute.name in target.refused:
            new = ""
        if new == "":
            yield attribute.node, ""
        elif new is not None and new != attribute.name:
            yield attribute.node, _renamed_property(attribute, new, element)


def _renamed_property(attribute: _Attribute, name: str, element: _Element) -> str:
    if not element.is_tag:
        return f"{name}={attribute.value}" if attribute.value else name
    binding = re.match(r"^(?::|v-bind:)?", attribute.written)
    written = f"{binding[0] if binding else ''}{_kebab_case(name)}"
    return f"{written}={attribute.value}" if attribute.value else written


_SIZED = re.compile(r"(?<![\w-])(?:size|w|h)-")
"""Tailwind classes that set a size."""
_SIZES = frozenset({"size", "width", "height", "style"})


def _added_properties(element: _Element, one: _Import) -> Iterator[str]:
    """Yield the properties that an element needs to keep its appearance, such as its previous default size."""
    assert one.component is not None
    yield from (f'{key}="{value}"' for key, value in one.component.properties.items())
    size = one.source.default_size
    is_sized = any(
        attribute.name in _SIZES or (attribute.name in ("className", "class") and _SIZED.search(attribute.value))
        for attribute in element.attributes
    )
    if size in ("", one.target.default_size) or is_sized or element.has_spread:
        return
    for side in ("size",) if one.target.has_size else ("width", "height"):
        if not size.isdigit():
            yield f'{side}="{size}"'
        else:
            yield f':{side}="{size}"' if element.is_tag else f"{side}={{{size}}}"


# --- Vue


def _vue_parts(page: SgNode) -> Iterator[_ParsedPart]:
    """Yield the scripts and styles of a Vue component and the expressions in its template, each with a separate
    tree.
    """
    for script in page.find_all(kind="script_element"):
        code = script.find(kind="raw_text")
        if code is not None:
            language = re.search(r"lang=[\"'](\w+)", script.text().partition(">")[0])
            grammar = SCRIPTS.get(language[1] if language else "js", "typescript")
            yield _ParsedPart(SgRoot(code.text(), grammar).root(), code.range().start.index, grammar)
    for style in page.find_all(kind="style_element"):
        code = style.find(kind="raw_text")
        if code is not None:
            yield _ParsedPart(SgRoot(code.text(), "css").root(), code.range().start.index, "css", is_script=False)
    for attribute in page.find_all(kind="attribute"):
        name, value = attribute.find(kind="attribute_name"), attribute.find(kind="attribute_value")
        if name is not None and value is not None and name.text()[0] in ":@#v" and not name.text().isalpha():
            yield _expression(value.text(), value.range().start.index)
    for text in page.find_all(kind="text"):
        for match in re.finditer(r"\{\{(.*?)\}\}", text.text(), re.DOTALL):
            yield _expression(match[1], text.range().start.index + match.start(1))


def _expression(code: str, start: int) -> _ParsedPart:
    """Parse an expression in parentheses, so that `{ a }` is parsed as an object."""
    return _ParsedPart(SgRoot(f"({code})", "typescript").root(), start - 1, "typescript", is_script=False)
