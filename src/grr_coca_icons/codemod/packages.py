"""npm packages whose components are icons: how each names them, and which properties and types it has.

Names and properties are those of the versions in `IconPackage.version`, read from their declarations of types.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

Framework = Literal["react", "vue"]


class Component(NamedTuple):
    """A component that shows an icon: the module that exports it, its name there, and properties it needs."""

    module: str
    name: str
    properties: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class IconPackage:
    """A package of components.

    Attributes:
        name: Name on npm.
        version: Range of versions to add to a package.json.
        framework: Renders the components.
        component: Returns the component of an icon, given the prefix of its set and its name.
        prefixes: Sets whose icons the package has.
        component_type: Type of a component; empty if the package exports none.
        properties_type: Type of its properties; empty if the package exports none.
        stroke: Property that sets the width of strokes; empty if it has no strokes.
        has_size: True if `size` sets both width and height.
        default_size: Size without any property; empty: the drawing fills what is around it.
        own: Further properties that no SVG element has.
        refused: Properties of SVG elements that its components do not take.
    """

    name: str
    version: str
    framework: Framework
    component: Callable[[str, str], Component] = field(repr=False)
    prefixes: tuple[str, ...]
    component_type: str = ""
    properties_type: str = ""
    stroke: str = "strokeWidth"
    has_size: bool = True
    default_size: str = "24"
    own: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()

    @property
    def type_prefix(self) -> str:
        """Beginning of names that stand for its types where `Icon` is taken."""
        return {"lucide": "Lucide", "tabler": "Tabler", "ph": "Phosphor", "ri": "Remix"}.get(self.prefixes[0], "Other")


def pascal(name: str) -> str:
    """The name of an icon as components are called: `trash-2` is `Trash2`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("-"))


def _after_digits(name: str) -> str:
    """A name with a capital after each digit."""
    return re.sub(r"\d[a-z]", lambda part: part[0].upper(), name)


def _named(module: str, beginning: str = "", ending: str = "") -> Callable[[str, str], Component]:
    return lambda _, name: Component(module, f"{beginning}{pascal(name)}{ending}")


def _heroicons(package: str) -> Callable[[str, str], Component]:
    def component(_: str, name: str) -> Component:
        style = next((style for style in ("-20-solid", "-16-solid", "-solid") if name.endswith(style)), "")
        own = _after_digits(pascal(name.removesuffix(style)))  # Squares2X2
        folder = {"": "24/outline", "-solid": "24/solid"}.get(style) or style[1:].replace("-", "/")
        return Component(f"{package}/{folder}", f"{own}Icon")

    return component


_WEIGHT = re.compile(r"-(thin|light|bold|fill|duotone)$")
"""The weight of a drawing of Phosphor, which its components have as a property."""


def _phosphor(module: str, beginning: str, ending: str) -> Callable[[str, str], Component]:
    def component(_: str, name: str) -> Component:
        weight = _WEIGHT.search(name)
        properties = {"weight": weight[1]} if weight else {}
        return Component(module, f"{beginning}{pascal(_WEIGHT.sub('', name))}{ending}", properties)

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
"""Modules of react-icons, and how names in them begin, for sets without a separate package of React components."""


def _react_icons(prefix: str, name: str) -> Component:
    module, beginning = _OF_REACT_ICONS[prefix]
    own = _after_digits(pascal(name))  # Fa500Px
    return Component(f"react-icons/{module}", f"{beginning}{own}")


_LUCIDE = frozenset({"absoluteStrokeWidth", "nonScalingStroke"})
_PHOSPHOR = frozenset({"weight", "mirrored"})

PACKAGES = (
    IconPackage(
        name="lucide-react",
        version="^1.81.0",
        framework="react",
        component=_named("lucide-react"),
        prefixes=("lucide",),
        component_type="LucideIcon",
        properties_type="LucideProps",
        own=_LUCIDE,
    ),
    IconPackage(
        name="@tabler/icons-react",
        version="^3.52.0",
        framework="react",
        component=_named("@tabler/icons-react", "Icon"),
        prefixes=("tabler",),
        component_type="Icon",
        properties_type="IconProps",
        stroke="stroke",
    ),
    IconPackage(
        name="@heroicons/react",
        version="^2.2.0",
        framework="react",
        component=_heroicons("@heroicons/react"),
        prefixes=("heroicons",),
        has_size=False,
        default_size="",
    ),
    IconPackage(
        name="@phosphor-icons/react",
        version="^2.1.10",
        framework="react",
        component=_phosphor("@phosphor-icons/react", "", "Icon"),
        prefixes=("ph",),
        component_type="Icon",
        properties_type="IconProps",
        stroke="",
        default_size="1em",
        own=_PHOSPHOR,
    ),
    IconPackage(
        name="@radix-ui/react-icons",
        version="^1.3.2",
        framework="react",
        component=_named("@radix-ui/react-icons", ending="Icon"),
        prefixes=("radix-icons",),
        stroke="",
        has_size=False,
        default_size="15",
    ),
    IconPackage(
        name="@remixicon/react",
        version="^4.9.0",
        framework="react",
        component=_named("@remixicon/react", "Ri"),
        prefixes=("ri",),
        component_type="RemixiconComponentType",
        stroke="",
        refused=frozenset({"fill", "viewBox", "width", "height"}),
    ),
    IconPackage(
        name="react-icons",
        version="^5.7.0",
        framework="react",
        component=_react_icons,
        prefixes=tuple(_OF_REACT_ICONS),
        component_type="IconType",
        properties_type="IconBaseProps",
        stroke="",
        default_size="1em",
    ),
    IconPackage(
        name="react-feather",
        version="^2.0.10",
        framework="react",
        component=_named("react-feather"),
        prefixes=("feather",),
        component_type="Icon",
        properties_type="IconProps",
    ),
    IconPackage(
        name="@lucide/vue",
        version="^1.48.0",
        framework="vue",
        component=_named("@lucide/vue"),
        prefixes=("lucide",),
        component_type="LucideIcon",
        properties_type="LucideProps",
        own=_LUCIDE,
    ),
    IconPackage(
        name="lucide-vue-next",
        version="^1.0.0",
        framework="vue",
        component=_named("lucide-vue-next"),
        prefixes=("lucide",),
        component_type="LucideIcon",
        properties_type="LucideProps",
        own=_LUCIDE,
    ),
    IconPackage(
        name="@tabler/icons-vue",
        version="^3.48.0",
        framework="vue",
        component=_named("@tabler/icons-vue", "Icon"),
        prefixes=("tabler",),
        component_type="Icon",
        properties_type="IconProps",
        stroke="stroke",
    ),
    IconPackage(
        name="@heroicons/vue",
        version="^2.2.0",
        framework="vue",
        component=_heroicons("@heroicons/vue"),
        prefixes=("heroicons",),
        has_size=False,
        default_size="",
    ),
    IconPackage(
        name="@phosphor-icons/vue",
        version="^2.2.1",
        framework="vue",
        component=_phosphor("@phosphor-icons/vue", "Ph", ""),
        prefixes=("ph",),
        stroke="",
        default_size="1em",
        own=_PHOSPHOR,
    ),
    IconPackage(
        name="@remixicon/vue",
        version="^4.9.0",
        framework="vue",
        component=_named("@remixicon/vue", "Ri"),
        prefixes=("ri",),
        stroke="",
        refused=frozenset({"fill", "viewBox", "width", "height"}),
    ),
)
"""Packages that code can be rewritten from and to. Of several for one set, the first is the target."""


def package_of(module: str) -> IconPackage | None:
    """The package that a module of code is of; None if it is none of icons that is known."""
    return next((one for one in PACKAGES if module == one.name or module.startswith(f"{one.name}/")), None)


def package_for(prefix: str, framework: Framework) -> IconPackage | None:
    """The package whose components show a set; None if none is known."""
    return next((one for one in PACKAGES if one.framework == framework and prefix in one.prefixes), None)


def usage_lines(prefix: str, name: str) -> list[str]:
    """Lines by which code uses an icon, besides Iconify's."""
    package = package_for(prefix, "react")
    component = package.component(prefix, name) if package else None
    lines = [f"import {{ {component.name} }} from '{component.module}'"] if component else []
    if prefix == "mdi":
        lines.append(f"import {{ mdi{pascal(name)} }} from '@mdi/js'")
    if prefix == "bi":
        lines.append(f'<i class="bi bi-{name}"></i>')
    return lines
