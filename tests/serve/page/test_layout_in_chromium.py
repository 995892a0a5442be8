"""How the page looks, at the widths of phones, tablets and screens, in both schemes: nothing lies over anything else,
what can be clicked is hit, and icons stand out from what is behind them."""

import io
import json
import shutil
from itertools import combinations

import numpy as np
import pytest
from browsing import hosted, static
from PIL import Image

WIDTHS = (390, 844, 1024, 1112, 1440)
SCHEMES = ("light", "dark")
MIN_CONTRAST = 100
"""Of 255: between the darkest and the lightest grey of a tile with an icon."""

SHOWN = """() => {
    const controls = "h1, #search, header nav button";
    const box = (element) => {
        const { left, top, right, bottom } = element.getBoundingClientRect();
        return [element.id || element.tagName, left, top, right, bottom];
    };
    const tiles = [...document.querySelectorAll("#pictures .tile")];
    const isHit = (element) => {
        const { left, top, width, height } = element.getBoundingClientRect();
        const found = document.elementFromPoint(left + width / 2, top + height / 2);
        return element === found || element.contains(found);
    };
    const buttons = [...document.querySelectorAll("header button, #query")].filter((one) => one.checkVisibility());
    return {
        header: [...document.querySelectorAll(controls)].map(box),
        tiles: tiles.map(box).map(([, ...sides], number) => [String(number), ...sides]),
        missed: buttons.filter((button) => !isHit(button)).map(({ id }) => id),
        cut: buttons.filter((one) => one.scrollWidth > one.clientWidth && one.id !== "query").map(({ id }) => id),
        width: document.documentElement.scrollWidth,
        tile: Math.round(tiles[0].getBoundingClientRect().width),
    };
}"""


def overlapping(boxes: list[list]) -> list[tuple[str, str]]:
    """The names of boxes that share more than the rounding of a pixel."""

    def meet(one: list, other: list) -> bool:
        across = min(one[3], other[3]) - max(one[1], other[1])
        down = min(one[4], other[4]) - max(one[2], other[2])
        return across > 0.5 and down > 0.5

    return [(one[0], other[0]) for one, other in combinations(boxes, 2) if meet(one, other)]


def contrast(locator) -> int:
    """The largest difference of grey in a screenshot of an element."""
    grey = np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("L"), np.int16)
    return int(grey.max() - grey.min())


def require_tidy(one, width: int) -> int:
    """Check what is shown. Returns the width of a tile."""
    one.page.wait_for_function("() => document.querySelector('#pictures .tile img')?.complete")
    shown = one.page.evaluate(SHOWN)
    assert overlapping(shown["header"]) == []
    assert overlapping(shown["tiles"]) == []
    assert shown["missed"] == [], "something else lies over them"
    assert shown["cut"] == []
    assert shown["width"] == width, "nothing has to be scrolled sideways"
    return shown["tile"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_icons_typed_and_opened(width, scheme, icons, tab):
    window = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    one = tab(icons, **window).ready()
    tiles = [require_tidy(one, width)]
    one.page.locator("#query").press_sequentially("heart")
    tiles.append(require_tidy(one.settled(), width))
    assert contrast(one.page.locator("#pictures .tile .frame").first) > MIN_CONTRAST
    opened = tab(f"{icons}#q=heart", **window).ready()
    tiles.append(require_tidy(opened, width))
    assert len(set(tiles)) == 1, "tiles are as large however a search began"
    for _ in range(2):
        assert contrast(opened.page.locator("#pictures .tile .frame").first) > MIN_CONTRAST
        opened.page.get_by_role("button", name="Switch background").click()
        opened.page.wait_for_timeout(300)
    opened.page.locator("#pictures .tile").first.click()
    opened.page.locator("#detail .stage img[src]").wait_for()
    assert contrast(opened.page.locator("#detail .stage")) > MIN_CONTRAST


@pytest.mark.parametrize("width", [*WIDTHS, 821, 900, 980, 1165])  # also between the breakpoints of the header
def test_images_typed_and_opened(width, host, tab):
    window = {"viewport": {"width": width, "height": 800}}
    typed = tab(host, **window).ready().ask("clock")
    opened = tab(f"{host}#q=clock", **window).ready()
    assert require_tidy(typed, width) == require_tidy(opened, width)


def test_long_title_leaves_the_controls(tmp_path, site, tab):
    shutil.copytree(site, tmp_path / "site")
    facts = json.loads((tmp_path / "site" / "site.json").read_text())
    facts["title"] = "Pictures of everything that was ever drawn in one house"
    (tmp_path / "site" / "site.json").write_text(json.dumps(facts))
    with hosted(static(tmp_path / "site")) as address:
        for width in (390, 844, 1112):
            require_tidy(tab(address, viewport={"width": width, "height": 800}).ready(), width)
