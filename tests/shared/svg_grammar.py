"""SVG files by a grammar, one for each seed, that favours what breaks renderers: references, filters, huge numbers."""

import random

_NUMBERS = (
    "0", "1", "5", "-3", ".5", "1e3", "1e9", "1e38", "1e308", "-1e308", "NaN", "99999999999", "100%", "1e-30", "",
)  # fmt: skip
_IDS = tuple(f"i{number}" for number in range(12))
_PAINTED = ("fill", "stroke", "mask", "clip-path", "filter", "marker-start", "marker-mid", "marker-end")
_CONTAINERS = ("g", "pattern", "mask", "clipPath", "marker", "symbol", "switch", "a", "defs", "linearGradient", "text")
_SHAPES = ("rect", "path", "circle", "ellipse", "line", "polyline", "polygon", "use", "stop", "tspan")
_FILTERS = ("feTurbulence", "feConvolveMatrix", "feMorphology", "feGaussianBlur", "feFlood", "feTile", "feOffset",
            "feDisplacementMap", "feDiffuseLighting", "feSpecularLighting", "feComponentTransfer", "feDropShadow",
            "feMerge", "feBlend", "feComposite", "feColorMatrix")  # fmt: skip
_SIZES = ("width", "height", "x", "y", "r", "rx", "ry", "cx", "cy", "x1", "x2", "stroke-width", "font-size", "offset",
          "markerWidth", "markerHeight", "refX", "stroke-dasharray", "opacity", "letter-spacing")  # fmt: skip
_OF_FILTERS = ("stdDeviation", "baseFrequency", "numOctaves", "order", "radius", "dx", "dy", "scale", "surfaceScale",
               "kernelMatrix", "divisor", "seed", "values", "specularExponent", "k1")  # fmt: skip
_UNITS = ("userSpaceOnUse", "objectBoundingBox")


def drawing(seed: int) -> bytes:
    """The drawing of a seed, up to a few hundred kilobytes."""
    chance = random.Random(seed)
    kind = chance.random()
    if kind < 0.1:
        body = _chain(chance)
    elif kind < 0.15:
        tag = chance.choice(_CONTAINERS)
        depth = chance.choice((50, 500, 5000, 50_000))
        body = f"<{tag}>" * depth + "<path d='M0 0h9v9z'/>" + f"</{tag}>" * depth
    elif kind < 0.2:
        points = "".join(chance.choice(("L9 90", "l1e9 2", "A1 2 3 0 1 9 9", "Q1 2 3 4", "Z")) for _ in range(20_000))
        body = f"<path stroke='red' {_attribute(chance)} d='M0 0{points}'/>"
    else:
        body = "".join(_element(chance, 4) for _ in range(chance.randint(1, 12)))
    head = "<svg xmlns='http://www.w3.org/2000/svg' xmlns:s='http://www.w3.org/2000/svg'"
    data = f"{head} viewBox='0 0 {_number(chance)} {_number(chance)}' {_attribute(chance)}>{body}</svg>".encode()
    return _damaged(chance, data) if chance.random() < 0.2 else data


def _chain(chance: random.Random) -> str:
    """Elements that refer to the next one, sometimes in a circle."""
    tag, length = (
        chance.choice(("use", "pattern", "mask", "clipPath", "marker", "filter")),
        chance.choice((5, 300, 3000)),
    )
    painted = {"pattern": "fill", "clipPath": "clip-path", "marker": "marker-start"}.get(tag, tag)
    last = 0 if chance.random() < 0.3 else length
    parts = []
    for number in range(length):
        following = last if number == length - 1 else number + 1
        inner = f"<path d='M0 0h9v9z' {painted}='url(#c{following})'/>"
        if tag == "use":
            parts.append(f"<g id='c{number}'><use href='#c{following}'/><use href='#c{following}'/></g>")
        else:
            parts.append(f"<{tag} id='c{number}' width='9' height='{_number(chance)}'>{inner}</{tag}>")
    return "".join(parts) + f"<path d='M0 0h90v90z' {painted}='url(#c0)'/><use href='#c0'/>"


def _element(chance: random.Random, depth: int) -> str:
    if depth and chance.random() < 0.15:
        primitives = "".join(
            f"<{chance.choice(('', 's:'))}{chance.choice(_FILTERS)} {_filter_attributes(chance)}/>"
            for _ in range(chance.randint(1, 6))
        )
        size = f"width='{_number(chance)}' filterUnits='{chance.choice(_UNITS)}'"
        return f"<filter id='{chance.choice(_IDS)}' {size}>{primitives}</filter>"
    attributes = " ".join(dict.fromkeys(_attribute(chance) for _ in range(chance.randint(0, 3))))
    if depth and chance.random() < 0.5:
        tag = chance.choice(_CONTAINERS)
        inside = "".join(_element(chance, depth - 1) for _ in range(chance.randint(0, 4)))
        return f"<{tag} id='{chance.choice(_IDS)}' patternUnits='{chance.choice(_UNITS)}' {attributes}>{inside}</{tag}>"
    path = f"d='M0 0L{_number(chance)} {_number(chance)}H9V9Z' points='0 0 {_number(chance)} 9 5 5'"
    return f"<{chance.choice(_SHAPES)} {path} href='#{chance.choice(_IDS)}' {attributes}/>"


def _attribute(chance: random.Random) -> str:
    if chance.random() < 0.4:
        return f"{chance.choice(_PAINTED)}='url(#{chance.choice(_IDS)})'"
    if chance.random() < 0.2:
        numbers = ",".join(_number(chance) for _ in range(6))
        return f"transform='matrix({numbers})' style='mix-blend-mode:multiply'"
    return f"s:{chance.choice(_SIZES)}='{_number(chance)}'" if chance.random() < 0.1 else _size(chance)


def _size(chance: random.Random) -> str:
    return f"{chance.choice(_SIZES)}='{_number(chance)}'"


def _filter_attributes(chance: random.Random) -> str:
    names = chance.sample(_OF_FILTERS, 4)
    return " ".join(f"{chance.choice(('', 's:'))}{name}='{_number(chance)} {_number(chance)}'" for name in names)


def _number(chance: random.Random) -> str:
    return chance.choice(_NUMBERS) if chance.random() < 0.5 else str(chance.randint(0, 200))


def _damaged(chance: random.Random, data: bytes) -> bytes:
    """Some bytes changed, dropped or repeated."""
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(damaged))
        match chance.randrange(3):
            case 0:
                damaged[place] = chance.randrange(256)
            case 1:
                del damaged[place : place + chance.randrange(20)]
            case 2:
                damaged[place:place] = damaged[place : place + chance.randrange(200)]
    return bytes(damaged)
