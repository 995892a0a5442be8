"""npm packages with icon components: their naming, properties and types.

The names and properties come from the type declarations of the versions in `IconPackage.version`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Framework = Literal["react", "vue"]


class Component(NamedTuple):
    """Icon component: the module that exports it, its name, and its required properties."""

    module: str
    name: str
    properties: Mapping[str, str] = MappingProxyType({})


Naming = Callable[[str, str, str], Component]
"""Function that takes a package, the prefix of an icon's set and the icon's name, and returns the icon's component."""


@dataclass(frozen=True, kw_only=True)
class IconPackage:
    """Package of icon components.

    Attributes:
        name: Name on npm.
        version: Version range to add to a package.json.
        framework: Framework of the components.
        naming: Function that names its components.
        prefixes: Prefixes of the sets whose icons the package has.
        component_type: Type of a component. Empty if the package exports no such type.
        properties_type: Type of a component's properties. Empty if the package exports no such type.
        stroke: Property that sets the width of strokes. Empty if the icons have no strokes.
        has_size: Whether `size` sets both width and height.
        is_size_number: Whether the value of `size` must be a number instead of a text.
        default_size: Size of a component if no property sets it. Empty if the drawing then fills its container.
        own: Properties of the components that SVG elements do not have.
        refused: Properties of SVG elements that the components do not support.
    """

    name: str
    version: str
    framework: Framework
    naming: Naming = field(repr=False)
    prefixes: tuple[str, ...]
    component_type: str = ""
    properties_type: str = ""
    stroke: str = ""
    has_size: bool = True
    is_size_number: bool = False
    default_size: str = "24"
    own: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()

    def component(self, prefix: str, name: str) -> Component:
        """Return the component of an icon, given the prefix of its set and its name."""
        return self.naming(self.name, prefix, name)

    @property
    def type_prefix(self) -> str:
        """Text in front of a type name of the package, such as `Tabler` in `TablerIcon`, in files in which the type
        name is already taken.
        """
        return {"lucide": "Lucide", "tabler": "Tabler", "ph": "Phosphor", "ri": "Remix"}.get(self.prefixes[0], "Other")


def pascal(name: str) -> str:
    """Convert an icon's name to a component name, such as `trash-2` to `Trash2`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("-"))


def _capitalize_after_digits(name: str) -> str:
    """Capitalize the letter after each digit of a name."""
    return re.sub(r"\d[a-z]", lambda part: part[0].upper(), name)


def _naming(pattern: str) -> Naming:
    return lambda package, _, name: Component(package, pattern.format(pascal(name)))


def _heroicons(package: str, _: str, name: str) -> Component:
    style = next((style for style in ("-20-solid", "-16-solid", "-solid") if name.endswith(style)), "")
    own = _capitalize_after_digits(pascal(name.removesuffix(style)))  # such as Squares2X2
    folder = {"": "24/outline", "-solid": "24/solid"}.get(style) or style[1:].replace("-", "/")
    return Component(f"{package}/{folder}", f"{own}Icon")


_WEIGHT = re.compile(r"-(thin|light|bold|fill|duotone)$")
"""Weights of Phosphor's drawings, which are a property of its components."""


def _phosphor(pattern: str) -> Naming:
    def component(package: str, _: str, name: str) -> Component:
        weight = _WEIGHT.search(name)
        properties = {"weight": weight[1]} if weight else {}
        return Component(package, pattern.format(pascal(_WEIGHT.sub("", name))), properties)

    return component


_OF_REACT_ICONS = {
    "fa6-solid": ("fa6", "Fa"),
    "fa6-regular": ("fa6", "FaReg"),
    "fa6-brands": ("fa6", "Fa"),
    "fa-solid": ("fa", "Fa"),
    "fa-regular": ("fa", "FaReg"),
    "fa-brands": ("fa", "Fa"),
    "bi": ("bs", "Bs"),
    "bx": ("bi", "Bi"),
    "bxs": ("bi", "BiSolid"),
    "feather": ("fi", "Fi"),
    "ion": ("io5", "Io"),
    "game-icons": ("gi", "Gi"),
    "simple-icons": ("si", "Si"),
}
"""Modules of react-icons and their name prefixes, for sets without a separate package of React components."""


def _react_icons(package: str, prefix: str, name: str) -> Component:
    module, beginning = _OF_REACT_ICONS[prefix]
    own = _capitalize_after_digits(pascal(name))  # such as Fa500Px
    return Component(f"{package}/{module}", f"{beginning}{own}")


_ICON_TYPES = {"component_type": "Icon", "properties_type": "IconProps"}
_LUCIDE: dict[str, Any] = {
    "naming": _naming("{}"),
    "prefixes": ("lucide",),
    "component_type": "LucideIcon",
    "properties_type": "LucideProps",
    "stroke": "strokeWidth",
    "own": frozenset({"absoluteStrokeWidth", "nonScalingStroke"}),
}
_TABLER: dict[str, Any] = {"naming": _naming("Icon{}"), "prefixes": ("tabler",), "stroke": "stroke", **_ICON_TYPES}
_HEROICONS: dict[str, Any] = {
    "naming": _heroicons,
    "prefixes": ("heroicons",),
    "stroke": "strokeWidth",
    "has_size": False,
    "default_size": "",
}
_PHOSPHOR: dict[str, Any] = {
    "prefixes": ("ph",),
    "default_size": "1em",
    "own": frozenset({"weight", "mirrored"}),
}
_REMIX: dict[str, Any] = {
    "naming": _naming("Ri{}"),
    "prefixes": ("ri",),
    "refused": frozenset({"fill", "viewBox", "width", "height"}),
}
_FEATHER: dict[str, Any] = {"naming": _naming("{}"), "prefixes": ("feather",), "stroke": "strokeWidth", **_ICON_TYPES}
_RADIX: dict[str, Any] = {
    "naming": _naming("{}Icon"),
    "prefixes": ("radix-icons",),
    "has_size": False,
    "default_size": "15",
}
_OTHERS: dict[str, Any] = {
    "naming": _react_icons,
    "prefixes": tuple(_OF_REACT_ICONS),
    "component_type": "IconType",
    "properties_type": "IconBaseProps",
    "default_size": "1em",
}

_TABLE: tuple[tuple[str, str, Framework, dict[str, Any]], ...] = (
    ("lucide-react", "^1.81.0", "react", _LUCIDE),
    ("@tabler/icons-react", "^3.52.0", "react", _TABLER),
    ("@heroicons/react", "^2.2.0", "react", _HEROICONS),
    ("@phosphor-icons/react", "^2.1.10", "react", {"naming": _phosphor("{}Icon"), **_PHOSPHOR, **_ICON_TYPES}),
    ("@radix-ui/react-icons", "^1.3.2", "react", _RADIX),
    ("@remixicon/react", "^4.9.0", "react", {**_REMIX, "component_type": "RemixiconComponentType"}),
    ("react-icons", "^5.7.0", "react", _OTHERS),
    ("react-feather", "^2.0.10", "react", _FEATHER),
    ("@lucide/vue", "^1.48.0", "vue", {**_LUCIDE, "is_size_number": True}),
    ("lucide-vue-next", "^1.0.0", "vue", {**_LUCIDE, "is_size_number": True}),
    ("@tabler/icons-vue", "^3.48.0", "vue", _TABLER),
    ("@heroicons/vue", "^2.2.0", "vue", _HEROICONS),
    ("@phosphor-icons/vue", "^2.2.1", "vue", {"naming": _phosphor("Ph{}"), **_PHOSPHOR}),
    ("@remixicon/vue", "^4.9.0", "vue", _REMIX),
)
PACKAGES = tuple(
    IconPackage(name=name, version=version, framework=framework, **more) for name, version, framework, more in _TABLE
)
"""Packages between which code can be rewritten. If a set has several packages for a framework, the first is the target.
"""


def package_of(module: str) -> IconPackage | None:
    """Return the icon package that contains a module, or None if no package in `PACKAGES` does."""
    return next((one for one in PACKAGES if module == one.name or module.startswith(f"{one.name}/")), None)


def package_for(prefix: str, framework: Framework) -> IconPackage | None:
    """Return the package with the components of a set, or None if no package in `PACKAGES` has them."""
    return next((one for one in PACKAGES if one.framework == framework and prefix in one.prefixes), None)


def usage_lines(prefix: str, name: str) -> list[str]:
    """Return examples of code that uses an icon: of its React component, `@mdi/js` and the classes of Bootstrap Icons.

    The result is empty if the icon's set has none of these.
    """
    package = package_for(prefix, "react")
    component = package.component(prefix, name) if package else None
    lines = [f"import {{ {component.name} }} from '{component.module}'"] if component else []
    if prefix == "mdi":
        lines.append(f"import {{ mdi{pascal(name)} }} from '@mdi/js'")
    if prefix == "bi":
        lines.append(f'<i class="bi bi-{name}"></i>')
    return lines
