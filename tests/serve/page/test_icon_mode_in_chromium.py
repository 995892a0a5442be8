"""The page of an index of icons: a panel beside the grid, a style for all icons, their SVG in the answers, the icons of
a screenshot. An index of anything else keeps the dialog."""

import functools
import io
import threading
from urllib.parse import unquote

import pytest
from browsing import StaticHost, Tab, hosted
from icon_places import CASTLE, HEART, HOUSE
from PIL import Image, ImageDraw, ImageOps

from grr_coca.data.isolated import decode_image

pytest.importorskip("resvg_py")

RIGHTS = {"permissions": ["clipboard-read", "clipboard-write"]}


def drawn(one: Tab, place: int = 0) -> str:
    """The SVG that a tile shows."""
    source = one.page.locator("#pictures .tile img").nth(place)
    one.page.wait_for_function("(image) => image.getAttribute('src')", arg=source.element_handle())
    address = source.get_attribute("src")
    assert address.startswith("data:image/svg+xml,")
    return unquote(address.partition(",")[2]).replace("'", '"')


def test_panel_lets_the_grid_be_used(icons, tab):
    one = tab(icons).ready().ask("heart")
    page = one.page
    width = page.locator("#pictures").bounding_box()["width"]
    page.locator("#pictures .tile").first.click()
    page.locator("#detail[open]").wait_for()
    assert page.locator("#detail:modal").count() == 0
    page.wait_for_function(f"() => document.querySelector('#pictures').clientWidth < {width - 300}")
    panel = page.locator("#detail").bounding_box()
    assert all(
        tile.bounding_box()["x"] + tile.bounding_box()["width"] <= panel["x"] for tile in page.locator(".tile").all()
    )
    first = page.locator("#detail h2, #detail .set").all_inner_texts()
    page.keyboard.press("ArrowRight")
    page.locator("#pictures li.open [data-index='1']").wait_for()
    assert page.locator("#detail h2, #detail .set").all_inner_texts() != first
    page.locator("#query").fill("castle")
    one.settled()
    assert page.locator("#detail[open]").count() == 1, "it stays while one searches on"
    page.locator("#pictures .tile").first.click()
    page.locator("#detail h2", has_text="castle").wait_for()
    page.keyboard.press("Escape")
    page.locator("#detail[open]").wait_for(state="detached")
    page.locator(".tile[data-index='0']:focus").wait_for()


def test_narrow_window_shows_a_dialog(icons, tab):
    one = tab(icons, viewport={"width": 390, "height": 800}).ready().ask("heart")
    one.page.locator("#pictures .tile").first.click()
    one.page.locator("#detail:modal").wait_for()


def test_images_keep_the_dialog(host, tab):
    one = tab(host).ready().ask("clock")
    assert one.page.locator("#icon-style").is_hidden()
    assert one.page.locator("#pictures .copy").first.is_hidden()
    one.page.locator("#pictures .tile").first.click()
    one.page.locator("#detail:modal").wait_for()


def test_style_applies_to_all_icons_and_copies(place, tab):
    one = tab(place, **RIGHTS).ready().ask("lucide:house")
    assert 'stroke-width="2"' in drawn(one)
    controls = one.page.locator("#icon-style")
    controls.get_by_label("Colour", exact=True).fill("#2040c0")
    controls.get_by_label("Size in pixels").fill("64")
    controls.get_by_label("Stroke width").fill("1.5")
    one.page.wait_for_function("() => document.querySelector('.tile img').src.includes('2040c0')")
    for place_of in range(2):
        svg = drawn(one, place_of)
        assert 'color="#2040c0"' in svg
        assert 'width="64"' in svg
    assert one.page.locator("#pictures .tile img").first.bounding_box()["width"] == 64
    one.page.locator("#pictures .tile").first.hover()
    one.page.locator("#pictures .copy").first.click()
    one.page.locator("#pictures .copy", has_text="Copied").wait_for()
    copied = one.page.evaluate("navigator.clipboard.readText()")
    assert 'stroke-width="1.5"' in copied
    assert 'color="#2040c0"' in copied
    assert one.page.locator("#detail[open]").count() == 0, "copying opens nothing"
    one.page.evaluate("navigator.clipboard.writeText('')")
    one.page.locator("#pictures .tile").first.focus()
    one.page.keyboard.press("c")
    one.page.wait_for_function("async () => (await navigator.clipboard.readText()).includes('1.5')")
    controls.get_by_role("button", name="Reset").click()
    one.page.wait_for_function("() => !document.querySelector('.tile img').src.includes('2040c0')")
    assert 'stroke-width="2"' in drawn(one)


def test_icons_come_with_the_answer(icons, tab):
    one = tab()
    asked: list[str] = []
    one.page.on("request", lambda request: asked.append(request.url.removeprefix(icons)))
    one.page.goto(icons)
    one.ready().ask("heart")
    drawn(one, 3)
    assert not [path for path in asked if path.startswith(("vector/", "image/"))]


def test_filters_equal_those_of_icons(icons, tab):
    one = tab(icons).ready()
    one.page.locator("#filters summary").first.wait_for()
    names = one.page.locator("#filters summary").all_inner_texts()
    assert names[:3] == ["Set", "Style", "Licence"]
    assert not {"Confidence", "Size", "Width", "Height", "Date"} & set(names)
    one.page.locator("#filters summary", has_text="Style").click()
    one.page.get_by_label("regular").check()
    one.settled()
    assert one.status == "1 icon of 9"


def screenshot() -> bytes:
    """A toolbar with three icons, one of them on a button and one white on dark, and some words."""
    image = Image.new("RGB", (700, 300), "#f4f4f6")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 160, 300), fill="#1d2433")
    draw.rounded_rectangle((236, 36, 284, 84), 8, fill="white", outline="#bbbbbb")
    for body, ink, left in ((HOUSE, "white", 48), (HEART, "#111111", 248), (CASTLE, "#111111", 348)):
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" width="24" height="24">{body}</svg>'
        black = decode_image(svg.encode(), "icon.svg").convert("L").resize((24, 24), Image.Resampling.LANCZOS)
        image.paste(ink, (left, 48), ImageOps.invert(black))
    draw.text((200, 150), "Orders of this week, all of them paid by card", fill="#111111", font_size=18)
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def test_icons_of_a_screenshot_are_found(icons, tab):
    one = tab(icons).ready()
    file = {"name": "screen.png", "mimeType": "image/png", "buffer": screenshot()}
    one.page.set_input_files("#file", file)
    pieces = one.page.locator("#dropped .pieces button")
    one.page.locator("#dropped .pieces span").nth(2).wait_for()
    assert pieces.count() == 3
    names = [label.partition(": ")[2] for label in (piece.get_attribute("aria-label") for piece in pieces.all())]
    assert names[0] in ("house", "home")
    assert names[1].startswith("heart")
    assert names[2] == "castle"
    pieces.nth(2).click()
    one.captioned().settled()
    assert one.captions(1) == ["castle"]
    assert pieces.count() == 3, "the others can still be chosen"
    one.page.get_by_role("button", name="Remove your image").click()
    assert one.page.locator("#dropped").is_hidden()


def test_skeleton_is_shown_until_there_is_an_answer(site, tab):
    may_answer = threading.Event()

    class Slow(StaticHost):
        def do_GET(self) -> None:
            if self.path.startswith("/site.json"):
                assert may_answer.wait(60)
            super().do_GET()

    with hosted(functools.partial(Slow, directory=str(site))) as address:
        one = tab(address)
        assert one.page.locator("#skeleton i").first.bounding_box()["height"] > 80
        may_answer.set()
        one.ready()
        assert one.page.locator("#skeleton").is_hidden()
